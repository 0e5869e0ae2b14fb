"""What a calibrated extension promises, on which text, and what that costs. No torch."""

from typing import Literal

from pydantic import Field

from neutral_residues.config.choices import ThresholdForm
from neutral_residues.results.base import Part

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
    over: int = Field(ge=1)
    """Tokens of the mean gate that is compared with its threshold."""
    dial: float = Field(ge=0, le=1)
    """Share of the tuning units' tokens on which each gate may open: it sets all thresholds."""
    sets: list[CalibratedSet] = Field(min_length=1)
    """The texts."""
    costs: list[TargetCost] = Field(default=[])
    """What it costs."""
    training_text_checked: bool
    """Whether none of these texts' documents is known to be one that was trained on; false where
    the training text is not known."""

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
