"""Finds thresholds for the gates of a trained extension, without training, and their promise.

    dial        one number that moves the thresholds of all gates, set on tuning units: `dial.py`
    losses      what the promise is about, measured on the other units: `losses.py`
    position    the last dial position that keeps the promise with the stated confidence:
                `statistics.py`

With several source texts the probability of error is split between them, and the strictest of their
positions keeps the promise for each. A unit is what is drawn independently (`units.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from neutral_residues.calibration.dial import Position, positions, turned_up
from neutral_residues.calibration.losses import GateLogits, HowApplied, open_shares, worse_documents
from neutral_residues.calibration.scores import document_scores
from neutral_residues.calibration.units import Losses, Units
from neutral_residues.config.choices import ThresholdForm
from neutral_residues.errors import UserError
from neutral_residues.evaluation.by_document import OnTokens, ignore
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.calibration import Calibration
from neutral_residues.results.promise import CalibratedSet, Promise, PromiseKind, TargetCost
from neutral_residues.tuner.gates import check_gates, extension_digest, reads_text
from neutral_residues.tuner.thresholds import Thresholds

USUAL_OVER = 32
"""Number of tokens of the mean that is compared with a threshold (LAB.md, "a promise with a
number")."""


@dataclass(frozen=True)
class Wanted:
    """The promise that thresholds must keep; a UserError for a number out of range."""

    at_most: float = 0.01
    """Largest share of tokens or documents, above 0 and below 1."""
    confidence: float | None = 0.95
    """Probability that the promise holds; None: it holds on average over calibrations."""
    kind: PromiseKind = "tokens"
    rise_percent: float = 1.0
    """For documents: a rise in bits per byte above this, in %, counts as worse."""
    form: ThresholdForm = "cut"
    over: int | None = None
    """Number of last tokens whose mean gate is compared with the threshold, for a gate that reads
    the text; None: `USUAL_OVER`, and 1 for gates in the layers."""

    def __post_init__(self) -> None:
        if not 0 < self.at_most < 1:
            raise UserError("at_most", got=self.at_most, allowed="above 0 and below 1, as 0.01")
        if self.confidence is not None and not 0 < self.confidence < 1:
            allowed = "above 0 and below 1, as 0.95"
            raise UserError("confidence", got=self.confidence, allowed=allowed)
        if self.over is not None and self.over < 1:
            raise UserError("over", got=self.over, allowed="a number of tokens, 1 or more")
        if not 0 <= self.rise_percent < float("inf"):
            raise UserError("rise", got=self.rise_percent, allowed="0 or more, in per cent")

    def how(self, model: Any) -> HowApplied:
        """How thresholds are applied to the gates of `model`; a UserError for a mean over several
        tokens if gates do not read tokens."""
        usual = USUAL_OVER if reads_text(model) else 1
        over = usual if self.over is None else self.over
        if over > 1 and not reads_text(model):
            what = "only a gate that reads the text can look at a mean over tokens"
            raise UserError(what, got=f"over {over}", allowed="1 for gates in the layers")
        return HowApplied(self.form, over)

    def split(self, num_sets: int) -> float | None:
        """The confidence needed for each of `num_sets` texts, so that the promise holds for all of
        them with the wanted confidence."""
        return None if self.confidence is None else 1 - (1 - self.confidence) / num_sets


def wanted_of(**settings: Any) -> Wanted:
    """The promise from the options of the command line; a UserError for an unknown choice, or an
    option without effect."""
    for name, choices in {"kind": get_args(PromiseKind), "form": get_args(ThresholdForm)}.items():
        if settings[name] not in choices:
            option = "promise" if name == "kind" else name
            raise UserError(f"--{option}", got=settings[name], allowed=", ".join(choices))
    if settings["kind"] == "tokens" and settings["rise_percent"] != Wanted.rise_percent:
        raise UserError("--rise goes with --promise documents", got=settings["rise_percent"])
    return Wanted(**settings)


@dataclass(frozen=True)
class Found:
    """The dial position that was found, and the measurements there."""

    wanted: Wanted
    how: HowApplied
    position: Position
    sets: tuple[CalibratedSet, ...]  # measurements on each source text
    weights: str  # digest of the extension's weights
    scores: dict[str, dict[int, list[float]]]  # for p-values of new text, see `scores.py`

    def thresholds(self, promise: str = "") -> Thresholds:
        """The thresholds for `set_thresholds`, with the promise as a sentence."""
        form, over = self.how.form, self.how.over
        return Thresholds(form, self.position.values, self.weights, over, promise)

    def calibration(
        self, costs: Sequence[TargetCost] = (), *, training_text_checked: bool
    ) -> Calibration:
        """The content of calibration.json."""
        is_about_documents = self.wanted.kind == "documents"
        promise = Promise(
            kind=self.wanted.kind,
            at_most=self.wanted.at_most,
            confidence=self.wanted.confidence,
            rise_percent=self.wanted.rise_percent if is_about_documents else None,
            form=self.how.form,
            over=self.how.over,
            dial=self.position.share,
            sets=list(self.sets),
            costs=list(costs),
            training_text_checked=training_text_checked,
        )
        return Calibration(weights=self.weights, promise=promise, scores=self.scores)


def calibrate(
    model: Any,
    texts: Sequence[Units],
    windows: Windows,
    wanted: Wanted = Wanted(),
    *,
    on_tokens: OnTokens = ignore,
) -> Found:
    """Find the least strict thresholds that keep a promise. The model is not changed.

    Args:
        model: a PEFT model with one active extension.
        texts: source texts in units, without training text of the extension.
        windows: how documents are cut into windows.
        wanted: the promise.
        on_tokens: called after each batch with its number of tokens.

    Raises:
        UserError: for gates that cannot be exactly 0, too few units, or a promise that no
            thresholds keep.
    """
    check_gates(model)
    confidence, how = wanted.split(len(texts)), wanted.how(model)
    for units in texts:
        units.check_enough(wanted.at_most, confidence)
    own = [_Text.of(model, units, windows, wanted, how, on_tokens) for units in texts]
    # Logits of a gate that reads tokens are the same at all positions, so one pass is enough.
    one_pass = wanted.kind == "tokens" and own[0].logits.reads_text
    dial = _dial([text.tuning_logits() for text in own], one_pass=one_pass)
    number = min(text.turned_up(dial, confidence) for text in own)
    if number == 0:
        raise _impossible(own, dial[0], wanted)
    position = dial[number - 1]
    scores = {text.name: document_scores(text.logits.at(position), text.units) for text in own}
    sets = tuple(text.measured(position, dial[-1]) for text in own)
    return Found(wanted, how, position, sets, extension_digest(model), scores)


def _dial(tuning: Sequence[dict[str, NDArray[np.float32]]], *, one_pass: bool) -> list[Position]:
    together = {name: np.concatenate([it[name] for it in tuning]) for name in tuning[0]}
    return positions(together, one_pass=one_pass)


@dataclass(frozen=True)
class _Text:
    """One source text and the measurements on it."""

    units: Units
    logits: GateLogits
    losses_at: Callable[[Position], Losses]
    wanted: Wanted

    @classmethod
    def of(
        cls,
        model: Any,
        units: Units,
        windows: Windows,
        wanted: Wanted,
        how: HowApplied,
        on_tokens: OnTokens,
    ) -> "_Text":
        logits = GateLogits(model, units, windows, how, on_tokens)
        losses_at = open_shares(logits, units)
        if wanted.kind == "documents":
            losses_at = worse_documents(model, units, windows, how, wanted.rise_percent, on_tokens)
        return cls(units, logits, losses_at, wanted)

    @property
    def name(self) -> str:
        return self.units.stream.name

    def tuning_logits(self) -> dict[str, NDArray[np.float32]]:
        """Gate -> (N,) the values that are compared with its threshold, for the tokens of tuning
        units; measured without thresholds."""
        chosen = self.units.tuning_tokens()
        return {name: logits[chosen] for name, logits in self.logits.compared_at(None).items()}

    def turned_up(self, dial: Sequence[Position], confidence: float | None) -> int:
        return turned_up(dial, self.losses_at, self.wanted.at_most, confidence)

    def measured(self, position: Position, trained: Position) -> CalibratedSet:
        """Measurements at `position` and without thresholds (`trained`), on the units that are not
        for tuning."""
        units = self.units
        testing = ~units.tuning_tokens()
        exact = [float((~self.logits.open_at(it))[testing].mean()) for it in (position, trained)]
        losses = [float(self.losses_at(it).testing.mean()) for it in (position, trained)]
        return CalibratedSet(
            name=self.name,
            key=units.stream.content_hash(),
            group_by=units.group_by,
            num_documents=units.stream.num_documents,
            num_tuning_units=units.num_units - units.num_testing,
            num_units=units.num_testing,
            loss=losses[0],
            trained_loss=losses[1],
            exact_share=exact[0],
            trained_exact_share=exact[1],
        )


def _impossible(texts: Sequence[_Text], strictest: Position, wanted: Wanted) -> UserError:
    """The error if not even the strictest position keeps the promise."""
    losses = {text.name: text.losses_at(strictest).testing for text in texts}
    name, worst = max(losses.items(), key=lambda item: item[1].mean())
    return UserError(
        f"no threshold keeps that promise on {name}",
        got=f"{100 * worst.mean():.2g} % at the strictest position, over {len(worst)} units",
        allowed=f"{100 * wanted.at_most:g} % or less, by a margin that the confidence asks for",
        do="give more units, or promise less (--at-most, --confidence)",
    )
