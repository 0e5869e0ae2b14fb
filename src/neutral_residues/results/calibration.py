"""`calibration.json`, next to the weights of a calibrated extension: what was promised, on which
text, at which cost, and what new text is compared with. No torch.

The thresholds themselves are in `adapter_config.json`, so they are always loaded with the weights.
Both files name the weights that they belong to.
"""

from pathlib import Path
from typing import Literal

from neutral_residues.errors import UserError
from neutral_residues.results.base import Part, read_part, write_part
from neutral_residues.results.promise import Promise
from neutral_residues.results.record import NOW, Created

FILE = "calibration.json"


class Calibration(Part):
    """The contents of `calibration.json`."""

    format: Literal["neutral-residues/calibration"] = "neutral-residues/calibration"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    created: Created = NOW
    """When it was made, UTC, ISO 8601."""
    weights: str
    """Digest of the weights that it belongs to."""
    promise: Promise
    """What was promised."""
    scores: dict[str, dict[int, list[float]]]
    """Set -> number of tokens n -> sorted scores, one document of each unit with n tokens: the mean
    over its first n tokens of the largest gate logit. Unlike text scores higher."""


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write it next to the weights."""
    write_part(folder / FILE, calibration)


def read_calibration(folder: Path, *, weights: str | None = None) -> Calibration:
    """Read the calibration of the extension in `folder`.

    Args:
        weights: digest of the weights that it must belong to; None: not checked.

    Raises:
        UserError: if there is none, it cannot be read, or it belongs to other weights.
    """
    if not (folder / FILE).is_file():
        do = "run neutral calibrate on it first"
        raise UserError(f"the extension in {folder} is not calibrated", got=f"no {FILE}", do=do)
    found = read_part(Calibration, folder / FILE, "calibration")
    if weights is not None and found.weights != weights:
        what = f"{folder / FILE} belongs to other weights than those beside it"
        raise UserError(what, do="calibrate the extension again (neutral calibrate)")
    return found
