"""Recognises feed-forward blocks that are plain gated MLPs.

    FFN(x)            = W_down ( act(W_gate x) * (W_up x) )
    FFN(x) + g A(x)   = [W_down W_o] . [ act(W_gate x) * (W_up x) ;  g * act(W_g x) * (W_i x) ]

Promise: `as_gated_mlp` accepts a block only if its output for two tokens equals this formula. It
first looks at the names of its modules; for quantised, sparse or otherwise different blocks it
returns None and never raises an error. On the meta device the structure alone decides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

PROJECTION_NAMES = ("gate_proj", "up_proj", "down_proj")
ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


@dataclass(frozen=True)
class GatedMLP:
    """The parts of a gated MLP, down(activation(gate(x)) * up(x)); `gate` and `up` are F x D,
    `down` is D x F."""

    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    activation: nn.Module

    @property
    def projections(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.gate, self.up, self.down

    def __call__(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), with the same operations as the block itself."""
        out: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return out


def as_gated_mlp(block: nn.Module) -> GatedMLP | None:
    """The parts of `block` if it is a plain gated MLP, else None."""
    children = dict(block.named_children())
    # Not `isinstance` alone: quantised or adapted linear layers are subclasses.
    linears = [
        child
        for name in PROJECTION_NAMES
        if isinstance(child := children.pop(name, None), nn.Linear) and type(child) is nn.Linear
    ]
    if len(linears) != 3 or len(children) != 1:
        return None
    (gate, up, down), ((name, activation),) = linears, children.items()
    if name not in ACTIVATION_NAMES or next(activation.parameters(), None) is not None:
        return None
    mlp = GatedMLP(gate, up, down, activation)
    return mlp if _computes(block, mlp) else None


@torch.no_grad()
def _computes(block: nn.Module, mlp: GatedMLP) -> bool:
    weight = mlp.gate.weight
    if weight.is_meta:
        return True
    # Not random, so that the global random state does not change.
    numbers = torch.arange(2 * mlp.gate.in_features, device=weight.device, dtype=torch.float32)
    x = numbers.sin().view(1, 2, -1).to(weight.dtype)
    found = block(x)
    return isinstance(found, Tensor) and torch.equal(found, mlp(x))
