"""`calibration.json`, beside the weights of a calibrated extension: what was promised, on which
text, at which cost, and what later text is compared with. No torch.

The thresholds themselves are in `adapter_config.json`, so they come wherever the weights do; here
is what they are for. Both name the weights that they belong to.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, computed_field

from neutral_residues.config.choices import ThresholdForm
from neutral_residues.errors import UserError
from neutral_residues.files import write_json
from neutral_residues.results.base import Part, read_part
from neutral_residues.results.record import NOW, Created

FILE = "calibration.json"

PromiseKind = Literal["tokens", "documents"]
"""tokens: the share of a unit's tokens on which any gate opens. documents: the share of a unit's
documents that get worse by more than `rise_percent`."""


class CalibratedSet(Part):
    """One source text that the promise is about, and what was measured on it."""

    name: str = Field(min_length=1)
    """Its name, for example "pubmed"."""
    key: str
    """Hash of its tokens."""
    group_by: str | None
    """The field that names the source of a document; null: each document is its own."""
    num_documents: int = Field(ge=1)
    """Documents in all."""
    num_tuning_units: int = Field(ge=1)
    """Units that chose the positions of the dial."""
    num_units: int = Field(ge=1)
    """Units on which these were tested: all others."""
    loss: float = Field(ge=0, le=1)
    """What the promise is about, on these: its mean over them, under the thresholds."""
    trained_loss: float = Field(ge=0, le=1)
    """The same of the extension as it was trained."""
    exact_share: float = Field(ge=0, le=1)
    """Share of their tokens on which every gate is exactly 0, so that the extension is skipped."""
    trained_exact_share: float = Field(ge=0, le=1)
    """The same of the extension as it was trained."""


class TargetCost(Part):
    """Bits per byte of a target text: what the promise costs."""

    name: str = Field(min_length=1)
    """Its name, for example "fr"."""
    backbone: float = Field(ge=0)
    """Of the backbone."""
    trained: float = Field(ge=0)
    """Of the extension as it was trained."""
    calibrated: float = Field(ge=0)
    """Of the extension under the thresholds."""

    @property
    def points(self) -> float | None:
        """Of what was learnt, the per cent that is lost; None if nothing was learnt."""
        learnt = self.backbone - self.trained
        return 100 * (self.calibrated - self.trained) / learnt if learnt > 0 else None


class Promise(Part):
    """What holds for text like that it was calibrated on."""

    kind: PromiseKind
    """What is bounded."""
    at_most: float = Field(gt=0, lt=1)
    """The bound, a share."""
    confidence: float | None = Field(default=None, gt=0, lt=1)
    """How sure it is; null: it holds on average over calibrations."""
    rise_percent: float | None = Field(default=None, ge=0)
    """For documents: the rise in bits per byte that is too much."""
    form: ThresholdForm
    """How thresholds are applied."""
    dial: float = Field(ge=0, le=1)
    """Share of the tuning units' tokens on which each gate may open: it sets all thresholds."""
    sets: list[CalibratedSet] = Field(min_length=1)
    """The texts."""
    costs: list[TargetCost] = Field(default=[])
    """What it costs."""
    training_text_checked: bool
    """Whether none of these texts' documents is known to be one that was trained on; false where
    the training text is not known."""

    @computed_field
    @property
    def sentence(self) -> str:
        """The promise in one sentence, with its conditions."""
        units = {text.group_by or "document" for text in self.sets}
        unit = units.pop() if len(units) == 1 else "source"
        share = f"{100 * self.at_most:g} %"
        what = f"the gates open on at most {share} of the tokens"
        if self.kind == "documents":
            worse = f"get worse by more than {self.rise_percent:g} % in bits per byte"
            what = f"at most {share} of the documents {worse}"
        sure = "on average over calibrations"
        if self.confidence is not None:
            sure = f"with {100 * self.confidence:g} % confidence"
        names = [f"{text.name} ({text.num_units} {unit}s)" for text in self.sets]
        seen = "" if self.training_text_checked else ", if it was not trained on"
        return (
            f"For text like {' and like '.join(names)}{seen}, {what} (mean over {unit}s), {sure};"
            " nothing is promised for other text."
        )


class Calibration(Part):
    """The whole file."""

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
    """Set -> number of tokens -> for a document of each unit that has so many, sorted: the mean
    over its first tokens of the largest gate logit. Text that is unlike these scores higher."""


def write_calibration(folder: Path, calibration: Calibration) -> None:
    """Write it beside the weights."""
    write_json(folder / FILE, calibration.model_dump(mode="json"))


def read_calibration(folder: Path, *, weights: str | None = None) -> Calibration:
    """That of the extension in `folder`.

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
