"""Compares new text with that of a calibration: how often gates open on it, and how unlike it is.

    with GateMonitor(model, calibration) as monitor:     around generation, in serving code
        model.generate(**inputs)
        for row in monitor.rows(): ...                   one of `TextGates` for each row

    watch(model, stream, windows, calibration)           over the documents of a file

A p-value near 0 means that a text is unlike the calibration's, so that nothing is promised for it;
see `scores.py`. Texts of fewer than 16 tokens have none.

Suffixes: B rows, T tokens of a pass.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from neutral_residues.calibration.dial import Position
from neutral_residues.calibration.losses import GateLogits, HowApplied
from neutral_residues.calibration.scores import text_p_value
from neutral_residues.calibration.units import Units
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.by_document import per_document
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.calibration import Calibration
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.gates import observe_gates
from neutral_residues.tuner.thresholds import Thresholds


@dataclass(frozen=True)
class TextGates:
    """How often gates were open on one text, and how it compares with the calibration's text."""

    num_tokens: int
    open_share: float
    """Share of its tokens on which any gate was open, from 0 to 1."""
    p_value: float | None
    """Conformal p-value that the text is like the calibration's; None for fewer than 16 tokens."""


def thresholds_of(model: Any, name: str = "default") -> Thresholds:
    """The thresholds of a calibrated extension; a UserError if it has none."""
    saved = model.peft_config[name].thresholds
    if saved is None:
        do = "calibrate it (neutral calibrate)"
        raise UserError("this extension has no thresholds", got=name, do=do)
    return Thresholds.of(saved)


def watch(
    model: Any, stream: TokenStream, windows: Windows, calibration: Calibration
) -> list[TextGates]:
    """`TextGates` for each document of `stream`; documents are read separately."""
    thresholds = thresholds_of(model)
    how = HowApplied(thresholds.form, thresholds.over)
    position = Position(calibration.promise.dial, thresholds.values)
    found = GateLogits(model, Units.of(stream), windows, how)
    open_D = per_document(stream, found.open_at(position))
    largest_N = np.maximum.reduce(list(found.at(position).values()))
    texts = np.split(largest_N, stream.document_ends[:-1])
    return [
        TextGates(len(text), float(number / len(text)), text_p_value(text, calibration.scores))
        for text, number in zip(texts, open_D, strict=True)
    ]


class GateMonitor:
    """Observes the gates in every forward pass of a model inside a `with` block, row by row: a
    prompt and the tokens generated after it are one text. Rows must keep their order, so beam
    search does not work.

    Args:
        model: a PEFT model, or one with Transformers' own adapters, with a calibrated extension.
        calibration: from `read_calibration`.
        name: the extension's adapter name.

    Raises:
        UserError: if the extension is not calibrated; in a pass, if the number of rows changed
            without a `reset`.
    """

    def __init__(self, model: Any, calibration: Calibration, name: str = "default") -> None:
        self._thresholds = thresholds_of(model, name)
        self._model, self._name, self._calibration = model, name, calibration
        self._inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._stack = ExitStack()
        self._seen: dict[str, Tensor] = {}
        self._mask: Any = None
        self.reset()

    def reset(self) -> None:
        """Forget all rows; call it before new texts."""
        self._largest: list[list[float]] = []
        self._open: list[int] = []

    def rows(self) -> list[TextGates]:
        """`TextGates` for each row since the last reset."""
        return [
            TextGates(
                num_tokens=len(largest),
                open_share=number / len(largest) if largest else 0.0,
                p_value=text_p_value(np.array(largest, np.float32), self._calibration.scores),
            )
            for largest, number in zip(self._largest, self._open, strict=True)
        ]

    def __enter__(self) -> Self:
        self._seen = self._stack.enter_context(observe_gates(self._inner, self._name))
        for hook in (
            self._inner.register_forward_pre_hook(self._before, with_kwargs=True),
            self._inner.register_forward_hook(self._after),
        ):
            self._stack.callback(hook.remove)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")
        self._seen.clear()

    def _after(self, module: Any, args: tuple[Any, ...], outputs: Any) -> None:
        if not self._seen:  # the extension was disabled
            return
        num_tokens = max(logits.shape[1] for logits in self._seen.values())
        whole = {key: it for key, it in self._seen.items() if it.shape[1] == num_tokens}
        logits = torch.stack([it[..., 0].float() for it in whole.values()])
        is_open_BT = self._open_gates(whole)
        real_BT = self._real(is_open_BT)
        self._add(logits.amax(0).cpu(), is_open_BT.cpu(), real_BT.cpu())

    def _open_gates(self, logits: dict[str, Tensor]) -> Tensor:
        """(B, T) whether any gate was open. The gate of an output head that computed only the last
        tokens is left out."""
        layer = embeddings_layer(self._inner)
        if layer is not None and self._name in layer.gates:
            return layer.gates[self._name].gate[..., 0] > 0
        values = self._thresholds.values
        return torch.stack([it[..., 0] > values[key] for key, it in logits.items()]).any(0)

    def _real(self, like_BT: Tensor) -> Tensor:
        """(B, T) which tokens are not padding."""
        if isinstance(self._mask, Tensor) and self._mask.ndim == 2:
            return self._mask[:, -like_BT.shape[1] :].bool()
        return torch.ones_like(like_BT)

    def _add(self, largest_BT: Tensor, is_open_BT: Tensor, real_BT: Tensor) -> None:
        if not self._largest:
            self._largest = [[] for _ in largest_BT]
            self._open = [0] * len(largest_BT)
        if len(self._largest) != len(largest_BT):
            what = "the number of rows changed while gates were watched"
            got = f"{len(largest_BT)} after {len(self._largest)}"
            raise UserError(what, got=got, do="call reset() before other texts")
        rows = zip(largest_BT, is_open_BT, real_BT, strict=True)
        for number, (largest, is_open, real) in enumerate(rows):
            self._largest[number] += largest[real].tolist()
            self._open[number] += int(is_open[real].sum())


def unlike(found: Sequence[TextGates], level: float) -> list[int]:
    """Indices of the texts whose p-value is at most `level`, the lowest first."""
    values = [(text.p_value, n) for n, text in enumerate(found) if text.p_value is not None]
    return [number for value, number in sorted(values) if value <= level]
