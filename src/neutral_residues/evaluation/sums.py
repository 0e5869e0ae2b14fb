"""What is kept of each batch of an evaluation, and what adds up over a set: nats, gates, residues.

Suffixes: B windows, T inputs of a window, K scored positions, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from neutral_residues.evaluation.metrics import TokenSums
from neutral_residues.losses import kl_nats
from neutral_residues.tuner.layer import NeutralResiduesLayer, layer_numbers
from neutral_residues.tuner.neutral import Residue

# Logits are turned into probabilities so many numbers at a time: 32 MB of float32 for each
# temporary.
LOGITS_PER_CHUNK = 2**23


class ResidueStats:
    """A residue hook that keeps, for one batch and each layer, where the gate is 0 and how large
    the residue is."""

    def __init__(self, layers: dict[str, NeutralResiduesLayer]) -> None:
        self.layers = layers
        self.numbers = layer_numbers(list(layers))
        self.gated = False
        self.hidden = 0
        self._index = {id(layer): index for index, layer in enumerate(layers.values())}
        self.start(0, 0)

    def start(self, num_rows: int, num_inputs: int) -> None:
        """Forget the batch before; the next one is of this shape."""
        self._shape = (num_rows, num_inputs)
        self.gate_zero_BT: dict[int, Tensor] = {}
        self.square_BT: dict[int, Tensor] = {}
        self._delta = torch.empty(0)

    def on_residue(self, layer: NeutralResiduesLayer, residue: Residue) -> None:
        index = self._index[id(layer)]
        delta = residue.delta.float()
        if residue.gate is None:
            zero = torch.zeros(delta.shape[:-1], dtype=torch.bool, device=delta.device)
        else:
            zero = residue.gate == 0
        self.gated |= residue.gate is not None
        self.hidden = delta.shape[-1]
        zero_BT = zero.reshape(self._shape)
        if (
            index in self.gate_zero_BT
        ):  # another active extension in the same layer: the model adds their sum
            delta = self._delta + delta
            zero_BT = zero_BT & self.gate_zero_BT[index]
        self.gate_zero_BT[index] = zero_BT
        self.square_BT[index] = delta.square().sum(-1).reshape(self._shape)
        self._delta = delta


@dataclass
class Sums:
    """What adds up, batch by batch, in float64."""

    by_token: TokenSums
    extended_nats: float = 0.0
    backbone_nats: float = 0.0
    kl_nats: float = 0.0
    num_neutral_tokens: int = 0
    gates_zero: list[int] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def add_residues(self, stats: ResidueStats, scored_BT: Tensor) -> None:
        """Count the gates and residues of a batch at its scored positions."""
        neutral_BT = scored_BT
        for index in sorted(stats.gate_zero_BT):
            zero_BT = stats.gate_zero_BT[index].cpu() & scored_BT
            neutral_BT = neutral_BT & zero_BT
            self.gates_zero[index] += int(zero_BT.sum())
            self.squares[index] += float(stats.square_BT[index].cpu()[scored_BT].double().sum())
        self.num_neutral_tokens += int(neutral_BT.sum())

    def add_nats(
        self, extended_KV: Tensor, backbone_KV: Tensor | None, targets_K: Tensor, first: int
    ) -> None:
        """Add the nats of K targets that follow each other from place `first` of the stream on, a
        chunk at a time."""
        for rows in torch.arange(len(targets_K)).split(
            max(1, LOGITS_PER_CHUNK // extended_KV.shape[-1])
        ):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            extended_K, backbone_K = _nats(extended_KV[part], targets_K[part]), None
            self.extended_nats += float(extended_K.sum())
            if backbone_KV is not None:
                backbone_K = _nats(backbone_KV[part], targets_K[part])
                self.backbone_nats += float(backbone_K.sum())
                self.kl_nats += float(
                    _exact(
                        kl_nats(extended_KV[part], backbone_KV[part].to(extended_KV.device))
                    ).sum()
                )
            both = (extended_K.numpy(), None if backbone_K is None else backbone_K.numpy())
            self.by_token.add(first + part.start, targets_K[part].numpy(), *both)


def _nats(logits_KV: Tensor, targets_K: Tensor) -> Tensor:
    return _exact(
        F.cross_entropy(logits_KV.float(), targets_K.to(logits_KV.device), reduction="none")
    )


def _exact(values: Tensor) -> Tensor:
    return values.cpu().double()  # on the CPU: not every accelerator has float64
