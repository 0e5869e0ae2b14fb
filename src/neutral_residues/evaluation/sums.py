"""Sums of an evaluation over a set: nats, gates and residues, added batch by batch.

Suffixes: B windows, T inputs of a window, K scored positions, V vocabulary, D documents.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from neutral_residues.losses import kl_nats
from neutral_residues.results.set_result import LayerResult
from neutral_residues.tuner.layer import AnyResidue, NeutralResiduesLayer, layer_numbers

Array = NDArray[Any]

# Softmax is computed in chunks of this many logits: each temporary tensor takes 32 MB in float32.
LOGITS_PER_CHUNK = 2**23


class ResidueStats:
    """Residue hook that records for one batch, in each layer and at each token, whether the gate is
    exactly 0, and the mean square of the residue."""

    def __init__(self, layers: dict[str, NeutralResiduesLayer]) -> None:
        self.layers = layers
        self.numbers = layer_numbers(layers)
        self.gated = False
        self._index = {id(layer): index for index, layer in enumerate(layers.values())}
        self.start(0, 0)

    def start(self, num_rows: int, num_inputs: int) -> None:
        """Start a batch of shape (B, T), and clear what was recorded for the previous one."""
        self._shape = (num_rows, num_inputs)
        self.gate_zero_BT: dict[int, Tensor] = {}
        self.mean_square_BT: dict[int, Tensor] = {}
        self._before: Any = None

    def on_residue(
        self, layer: NeutralResiduesLayer, residue: AnyResidue, base_output: Tensor, name: str
    ) -> None:
        index = self._index[id(layer)]
        squares, gate = residue.mean_square(), residue.gate
        zero = torch.zeros_like(squares) if gate is None else gate == 0
        self.gated |= gate is not None
        zero_BT = self._fit(zero.bool())
        if index in self.gate_zero_BT:  # several active extensions: residues are added
            residue = self._before.plus(residue)
            squares = residue.mean_square()
            zero_BT = zero_BT & self.gate_zero_BT[index]
        self.gate_zero_BT[index] = zero_BT
        self.mean_square_BT[index] = self._fit(squares)
        self._before = residue

    def _fit(self, values: Tensor) -> Tensor:
        """`values` as (B, T), one per token; 0 where the output head was not computed."""
        rows, inputs = self._shape
        by_row = values.reshape(rows, -1)
        return F.pad(by_row, (inputs - by_row.shape[1], 0))


@dataclass(frozen=True, eq=False)
class TokenSums:
    """Nats of an evaluation set by token type (V) and by document (D), in float64."""

    ends_D: NDArray[np.int64]  # end (excluded) of each document in the stream
    counts_V: NDArray[np.int64]  # number of scored tokens of each type
    extended_V: NDArray[np.float64]  # nats under the two models
    backbone_V: NDArray[np.float64]
    extended_D: NDArray[np.float64]
    backbone_D: NDArray[np.float64]

    @classmethod
    def empty(cls, vocabulary: int, ends_D: NDArray[np.int64]) -> "TokenSums":
        """Sums of 0, to add to."""
        types, documents = (np.zeros((2, n)) for n in (vocabulary, len(ends_D)))
        return cls(ends_D, np.zeros(vocabulary, dtype=np.int64), *types, *documents)

    def add(
        self, positions_K: Array, targets_K: Array, extended_K: Array, backbone_K: Array
    ) -> None:
        """Add the nats of K tokens at `positions_K` in the stream."""
        document_K = np.searchsorted(self.ends_D, positions_K, side="right")
        np.add.at(self.counts_V, targets_K, 1)
        for by_type, by_document, nats_K in (
            (self.extended_V, self.extended_D, extended_K),
            (self.backbone_V, self.backbone_D, backbone_K),
        ):
            np.add.at(by_type, targets_K, nats_K)
            np.add.at(by_document, document_K, nats_K)


@dataclass
class Sums:
    """Sums over an evaluation set, in float64."""

    by_token: TokenSums | None  # None without a breakdown
    kl_nats: float | None  # KL(backbone || extended); None if not measured
    gates_zero: list[int]  # for each layer, number of tokens on which its gate is exactly 0
    squares: list[float]  # for each layer, sum over tokens of the residue's mean square
    backbone_nats: float = 0.0
    extended_nats: float = 0.0
    num_neutral_tokens: int = 0

    def add_residues(self, stats: ResidueStats, scored_BT: Tensor) -> None:
        """Add gates and residues of a batch at its scored positions."""
        neutral_BT = scored_BT
        for index in sorted(stats.gate_zero_BT):
            zero_BT = stats.gate_zero_BT[index].cpu() & scored_BT
            neutral_BT = neutral_BT & zero_BT
            self.gates_zero[index] += int(zero_BT.sum())
            self.squares[index] += float(
                stats.mean_square_BT[index].cpu()[scored_BT].double().sum()
            )
        self.num_neutral_tokens += int(neutral_BT.sum())

    def add_nats(
        self, extended_KV: Tensor, backbone_KV: Tensor | None, targets_K: Tensor, positions_K: Array
    ) -> None:
        """Add the nats of K targets at `positions_K` in the stream, from the logits that predict
        them, in chunks."""
        rows_per_chunk = max(1, LOGITS_PER_CHUNK // extended_KV.shape[-1])
        for start in range(0, len(targets_K), rows_per_chunk):
            rows = slice(start, start + rows_per_chunk)
            backbone = None if backbone_KV is None else backbone_KV[rows]
            self._add_chunk(extended_KV[rows], backbone, targets_K[rows], positions_K[rows])

    def _add_chunk(
        self, extended_KV: Tensor, backbone_KV: Tensor | None, targets_K: Tensor, positions_K: Array
    ) -> None:
        extended_KV = extended_KV.float().log_softmax(-1)
        extended_K = _nats(extended_KV, targets_K)
        self.extended_nats += float(extended_K.sum())
        if backbone_KV is None:
            return
        backbone_KV = backbone_KV.to(extended_KV.device).float().log_softmax(-1)
        backbone_K = _nats(backbone_KV, targets_K)
        self.backbone_nats += float(backbone_K.sum())
        if self.kl_nats is not None:
            # The KL is an expectation under the backbone, which gives new tokens probability 0.
            same_KV = extended_KV[:, : backbone_KV.shape[-1]]
            self.kl_nats += float(_exact(kl_nats(same_KV, backbone_KV)).sum())
        if self.by_token is not None:
            nats = (extended_K.numpy(), backbone_K.numpy())
            self.by_token.add(positions_K, targets_K.numpy(), *nats)

    def layer_results(self, stats: ResidueStats, num_tokens: int) -> list[LayerResult]:
        """Results of each layer: its sums divided by the number of tokens of the set."""
        by_layer = zip(stats.numbers, self.gates_zero, self.squares, strict=True)
        return [
            LayerResult(
                layer=number,
                gates_zero=zero / num_tokens if stats.gated else None,
                residue_rms=math.sqrt(squares / num_tokens),
            )
            for number, zero, squares in by_layer
        ]


def _nats(log_probs_KV: Tensor, targets_K: Tensor) -> Tensor:
    targets_K1 = targets_K.to(log_probs_KV.device)[:, None]
    return _exact(-log_probs_KV.gather(-1, targets_K1)[:, 0])


def _exact(values: Tensor) -> Tensor:
    return values.cpu().double()  # on the CPU: not every accelerator has float64
