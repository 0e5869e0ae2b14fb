"""The losses that a promise can be about, measured at a position of the dial: the share of tokens
on which gates are open, or of documents that the extension makes worse.

Suffixes: N tokens of a stream, D documents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from neutral_residues.calibration.dial import Position
from neutral_residues.calibration.units import Losses, Units
from neutral_residues.config.choices import ThresholdForm
from neutral_residues.errors import UserError
from neutral_residues.evaluation.by_document import (
    OnTokens,
    document_nats,
    gate_logits,
    ignore,
    per_document,
)
from neutral_residues.evaluation.inference import as_backbone
from neutral_residues.evaluation.windows import Windows
from neutral_residues.tuner.gates import reads_text, under_thresholds
from neutral_residues.tuner.thresholds import Thresholds

LogitsN = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class HowApplied:
    """How thresholds are applied; see `tuner/thresholds.py`."""

    form: ThresholdForm = "cut"
    over: int = 1

    def thresholds_at(self, position: Position | None) -> Thresholds | None:
        """The thresholds of a position, for measuring; None: no thresholds."""
        if position is None:
            return None
        return Thresholds(self.form, position.values, weights="", over=self.over)


class GateLogits:
    """Computes the logits of all gates on a stream, with the thresholds of a dial position. Logits
    of a gate that reads tokens do not depend on thresholds; those of gates in layers depend on the
    open gates of earlier layers, and are computed again at each position."""

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        windows: Windows,
        how: HowApplied,
        on_tokens: OnTokens = ignore,
    ) -> None:
        self._model, self._units, self._windows = model, units, windows
        self._how, self._on_tokens = how, on_tokens
        self.reads_text = reads_text(model)
        self._last: tuple[Position | None, LogitsN] | None = None

    def at(self, position: Position | None) -> LogitsN:
        """Gate -> (N,) logits with the thresholds of a position; None: without thresholds."""
        if self._last is None or not (self.reads_text or self._last[0] == position):
            with under_thresholds(self._model, self._how.thresholds_at(position)):
                found = gate_logits(
                    self._model, self._units.stream, self._windows, on_tokens=self._on_tokens
                )
            self._last = position, found
        return self._last[1]

    def open_at(self, position: Position) -> NDArray[np.bool_]:
        """(N,) whether any gate is open, with the thresholds of a position."""
        compared = self.compared_at(position)
        return np.logical_or.reduce([compared[n] > value for n, value in position.values.items()])

    def compared_at(self, position: Position | None) -> LogitsN:
        """Gate -> (N,) the values that are compared with its threshold: the gate is open where they
        are larger."""
        ends_D, over = self._units.stream.document_ends, self._how.over
        return {name: compared(it, ends_D, over) for name, it in self.at(position).items()}


def compared(
    logits_N: NDArray[np.float32], ends_D: NDArray[np.int64], over: int
) -> NDArray[np.float32]:
    """(N,) the values that are compared with a gate's threshold: the mean gate over the last `over`
    tokens where the logit is above 0, else the logit."""
    if over == 1:
        return logits_N
    return np.where(logits_N > 0, mean_gates_of(logits_N, ends_D, over), logits_N)


def mean_gates_of(
    logits_N: NDArray[np.float32], ends_D: NDArray[np.int64], over: int
) -> NDArray[np.float32]:
    """(N,) the mean of relu(logit) over the last `over` tokens, or as many as the document has so
    far; the same as `reader.mean_gates`."""
    numbers_N = np.arange(len(logits_N))
    sums_N = np.cumsum(np.maximum(logits_N, 0), dtype=np.float64)
    lengths_D = np.diff(ends_D, prepend=0)
    starts_N = np.repeat(ends_D - lengths_D, lengths_D)
    before_N = np.maximum(numbers_N - over, starts_N - 1)  # the last token that does not count
    earlier_N = np.where(before_N < 0, 0.0, sums_N[before_N])
    return ((sums_N - earlier_N) / (numbers_N - before_N)).astype(np.float32)


def open_shares(found: GateLogits, units: Units) -> Callable[[Position], Losses]:
    """A function from a position to losses: for each unit, the share of its tokens on which any
    gate is open."""
    stream = units.stream
    sizes_D = per_document(stream, np.ones(stream.num_tokens))

    def at(position: Position) -> Losses:
        return units.means(per_document(stream, found.open_at(position)), sizes_D)

    return at


def worse_documents(
    model: nn.Module,
    units: Units,
    windows: Windows,
    how: HowApplied,
    rise_percent: float,
    on_tokens: OnTokens = ignore,
) -> Callable[[Position], Losses]:
    """A function from a position to losses: for each unit, the share of its documents whose bits
    per byte rise by more than `rise_percent` % over the backbone's. It raises a UserError if a
    document has a new token with probability 0."""
    with as_backbone(model) as backbone:
        backbone_D = document_nats(backbone, units.stream, windows, on_tokens=on_tokens)
    limit_D = backbone_D * (1 + rise_percent / 100)

    def at(position: Position) -> Losses:
        with under_thresholds(model, how.thresholds_at(position)):
            nats_D = document_nats(
                model, units.stream, windows, backbone_D=backbone_D, on_tokens=on_tokens
            )
        if not np.isfinite(nats_D).all():  # a new token behind a closed gate
            what = f"{units.stream.name} has tokens that are impossible where a gate is closed"
            raise UserError(what, do="promise tokens (--promise tokens)")
        return units.shares(nats_D > limit_D)

    return at
