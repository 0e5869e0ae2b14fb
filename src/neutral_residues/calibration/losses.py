"""What a promise is about, measured at a position of the dial: tokens on which gates open, or
documents that get worse.

Suffixes: N tokens of a stream, D documents.
"""

from collections.abc import Callable, Mapping

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
from neutral_residues.tuner.gates import gates, under_thresholds
from neutral_residues.tuner.reader import TokenReader
from neutral_residues.tuner.thresholds import Thresholds

LogitsN = Mapping[str, NDArray[np.float32]]


class GateLogits:
    """What the gates say on a stream under thresholds. A gate that reads the text says the same
    under all; what gates in the layers say depends on what those before them let through."""

    def __init__(
        self,
        model: nn.Module,
        units: Units,
        windows: Windows,
        form: ThresholdForm,
        on_tokens: OnTokens = ignore,
    ) -> None:
        self._model, self._units, self._windows = model, units, windows
        self._form: ThresholdForm = form
        self._on_tokens = on_tokens
        readers = [isinstance(gate, TokenReader) for gate in gates(model).values()]
        self.reads_text = any(readers)
        self._last: tuple[Position | None, LogitsN] | None = None

    def at(self, position: Position | None) -> LogitsN:
        """(N,) for each gate; None: as trained."""
        if self._last is None or not (self.reads_text or self._last[0] == position):
            with under_thresholds(self._model, thresholds_at(position, self._form)):
                found = gate_logits(
                    self._model, self._units.stream, self._windows, on_tokens=self._on_tokens
                )
            self._last = position, found
        return self._last[1]

    def open_at(self, position: Position) -> NDArray[np.bool_]:
        """(N,) where any gate is open."""
        logits = self.at(position)
        found = [logits[name] > value for name, value in position.values.items()]
        return np.logical_or.reduce(found)


def thresholds_at(
    position: Position | None, form: ThresholdForm, weights: str = ""
) -> "Thresholds | None":
    """Of that position; None: none."""
    return None if position is None else Thresholds(form, position.values, weights)


def open_shares(found: GateLogits, units: Units) -> Callable[[Position], Losses]:
    """Of each unit's tokens, the share on which any gate opens."""
    stream = units.stream
    sizes_D = per_document(stream, np.ones(stream.num_tokens))

    def at(position: Position) -> Losses:
        return units.means(per_document(stream, found.open_at(position)), sizes_D)

    return at


def worse_documents(
    model: nn.Module,
    units: Units,
    windows: Windows,
    form: ThresholdForm,
    rise_percent: float,
    on_tokens: OnTokens = ignore,
) -> Callable[[Position], Losses]:
    """Of each unit's documents, the share that gets worse by more than `rise_percent` % in bits per
    byte; a UserError where one has a new token that is impossible."""
    with as_backbone(model) as backbone:
        limit_D = document_nats(backbone, units.stream, windows, on_tokens=on_tokens)
    limit_D = limit_D * (1 + rise_percent / 100)

    def at(position: Position) -> Losses:
        with under_thresholds(model, thresholds_at(position, form)):
            nats_D = document_nats(model, units.stream, windows, on_tokens=on_tokens)
        if not np.isfinite(nats_D).all():  # a new token of its own, behind a shut gate
            what = f"{units.stream.name} has tokens that are impossible where a gate is shut"
            raise UserError(what, do="promise tokens (--promise tokens)")
        return units.shares(nats_D > limit_D)

    return at
