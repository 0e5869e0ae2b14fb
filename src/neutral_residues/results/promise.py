"""The promise of a calibrated extension: its bound, the texts it holds for, and its cost. No
torch."""

from typing import Literal

from pydantic import Field

from neutral_residues.config.choices import ThresholdForm
from neutral_residues.results.base import Part

PromiseKind = Literal["tokens", "documents"]
"""The loss of a unit, of which the mean is bounded. tokens: share of its tokens on which any gate
opens. documents: share of its documents that get worse by more than `rise_percent`. A unit is what
is drawn independently: a document, or all documents of one origin (`CalibratedSet.group_by`)."""


class CalibratedSet(Part):
    """A source text that the promise is about, and what was measured on it."""

    name: str = Field(min_length=1)
    """Name of the set, for example "pubmed"."""
    key: str
    """Hash of its tokens."""
    group_by: str | None
    """Field of a document whose value is its unit, for example a journal; null: each document is a
    unit of its own."""
    num_documents: int = Field(ge=1)
    """Documents in the set."""
    num_tuning_units: int = Field(ge=1)
    """Units that were used to find the positions of the dial."""
    num_units: int = Field(ge=1)
    """All other units: those on which these positions were tested."""
    loss: float = Field(ge=0, le=1)
    """Mean over the tested units of the loss in `PromiseKind`, with the thresholds."""
    trained_loss: float = Field(ge=0, le=1)
    """The same for the extension as trained, without thresholds."""
    exact_share: float = Field(ge=0, le=1)
    """Share of the tested units' tokens on which every gate is exactly 0, so that the extension is
    skipped."""
    trained_exact_share: float = Field(ge=0, le=1)
    """The same for the extension as trained, without thresholds."""


class TargetCost(Part):
    """What the promise costs on a target text, in bits per byte."""

    name: str = Field(min_length=1)
    """Name of the set, for example "fr"."""
    backbone: float = Field(ge=0)
    """Bits per byte of the backbone."""
    trained: float = Field(ge=0)
    """Bits per byte of the extended model as trained, without thresholds."""
    calibrated: float = Field(ge=0)
    """Bits per byte of the extended model with the thresholds."""

    @property
    def points(self) -> float | None:
        """The part of the learnt drop in bits per byte that the thresholds lose, in per cent; None
        if nothing was learnt."""
        learnt = self.backbone - self.trained
        return 100 * (self.calibrated - self.trained) / learnt if learnt > 0 else None


class Promise(Part):
    """A statistical bound that holds for text like the one it was calibrated on."""

    kind: PromiseKind
    """The loss that is bounded."""
    at_most: float = Field(gt=0, lt=1)
    """The bound: the mean loss over units is at most this share."""
    confidence: float | None = Field(default=None, gt=0, lt=1)
    """Probability that a calibration gives thresholds for which the bound holds; null: it holds on
    average over calibrations."""
    rise_percent: float | None = Field(default=None, ge=0)
    """For kind "documents": documents whose bits per byte rise by more than this many per cent
    count as worse."""
    form: ThresholdForm
    """How thresholds are applied to gates."""
    over: int = Field(ge=1)
    """Number of last tokens over which a gate is averaged before it is compared with its
    threshold."""
    dial: float = Field(ge=0, le=1)
    """Share of the tuning units' tokens on which each gate may open; it sets the thresholds of all
    gates."""
    sets: list[CalibratedSet] = Field(min_length=1)
    """The source texts that it was calibrated on."""
    costs: list[TargetCost] = Field(default=[])
    """What it costs on target texts."""
    training_text_checked: bool
    """Whether the documents of these texts were compared with the training text, and none was
    found in it; false if the training text is not known."""

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
