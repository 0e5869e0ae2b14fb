"""Which feed-forward blocks are plain gated linear units, so that a residue makes them one wider unit.

    FFN(x)            = W_down ( act(W_gate x) * (W_up x) )
    FFN(x) + g A(x)   = [W_down W_o] . [ act(W_gate x) * (W_up x) ;  g * act(W_g x) * (W_i x) ]

Promise: `plain_glu` says yes only to a block that was seen to compute exactly this on two tokens. It looks at children
and their names first; quantised, biased in an unknown way, sparse or otherwise different blocks are None, never an
error. On the meta device there is nothing to compute with, and the structure alone decides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")


@dataclass(frozen=True)
class Glu:
    """down( activation(gate x) * (up x) ): F is `gate.out_features`, D is `gate.in_features`."""

    gate: nn.Linear
    up: nn.Linear
    down: nn.Linear
    activation: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D), in the same operations as the block itself."""
        out: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        return out


def plain_glu(block: nn.Module) -> Glu | None:
    """The parts of `block` if it is a plain gated linear unit, else None."""
    glu = _parts(block)
    return glu if glu is not None and _computes(block, glu) else None


def _parts(block: nn.Module) -> Glu | None:
    children = dict(block.named_children())
    activations = [children.pop(name) for name in ACTIVATION_NAMES if name in children]
    # A quantised or adapted linear layer is a subclass of its own.
    plain = {name: child for name, child in children.items() if type(child) is nn.Linear}
    if children.keys() != {"gate_proj", "up_proj", "down_proj"} or len(plain) != 3 or len(activations) != 1:
        return None
    if any(True for _ in activations[0].parameters()):
        return None
    return Glu(plain["gate_proj"], plain["up_proj"], plain["down_proj"], activations[0])


@torch.no_grad()
def _computes(block: nn.Module, glu: Glu) -> bool:
    weight = glu.gate.weight
    if weight.is_meta:
        return True
    width_in = glu.gate.in_features
    # Not drawn at random: whoever asks must find the random state as it was.
    x = torch.arange(2 * width_in, device=weight.device, dtype=torch.float32).sin().view(1, 2, width_in)
    x = x.to(weight.dtype)
    found = block(x)
    return isinstance(found, Tensor) and torch.equal(found, glu(x))
