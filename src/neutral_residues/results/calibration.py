"""`calibration.json`, next to the weights of a calibrated extension: the promise, the texts that it
was calibrated on, its cost, and the gate scores that new text is compared with. No torch.

The thresholds themselves are in `adapter_config.json`, so that they are always loaded with the
weights. Both files contain the digest of the weights that they belong to.
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
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    created: Created = NOW
    """Time of the calibration, UTC, ISO 8601."""
    weights: str
    """Digest of the weights that it belongs to."""
    promise: Promise
    """The promise about source text, and its cost."""
    scores: dict[str, dict[int, list[float]]]
    """Set -> number of tokens n -> sorted scores of one document per unit, those with at least n
    tokens. A score is the mean over the first n tokens of the largest gate logit; text that differs
    from the calibration text has higher scores."""


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write `calibration.json` into `folder`, next to the weights."""
    write_part(folder / FILE, calibration)


def read_calibration(folder: Path, *, weights: str | None = None) -> Calibration:
    """Read the calibration of the extension in `folder`.

    Args:
        weights: digest of the weights that the calibration must belong to; None: not checked.

    Raises:
        UserError: if the extension is not calibrated, the file cannot be read, or it belongs to
            other weights.
    """
    if not (folder / FILE).is_file():
        do = "run neutral calibrate on it first"
        raise UserError(f"the extension in {folder} is not calibrated", got=f"no {FILE}", do=do)
    found = read_part(Calibration, folder / FILE, "calibration")
    if weights is not None and found.weights != weights:
        what = f"{folder / FILE} belongs to other weights than those beside it"
        raise UserError(what, do="calibrate the extension again (neutral calibrate)")
    return found
