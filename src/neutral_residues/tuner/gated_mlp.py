"""Which feed-forward blocks are plain gated linear units, and how a frozen one trains with less
memory.

    FFN(x)            = W_down ( act(W_gate x) * (W_up x) )
    FFN(x) + g A(x)   = [W_down W_o] . [ act(W_gate x) * (W_up x) ;  g * act(W_g x) * (W_i x) ]

Promise: `plain_glu` says yes only to a block that was seen to compute exactly this on two tokens.
It looks at children and their names first; quantised, biased in an unknown way, sparse or otherwise
different blocks are None, never an error. On the meta device there is nothing to compute with, and
the structure alone decides.

`frozen_glu` is the same block for training around frozen weights. Autograd keeps three activations
of the FFN's width for its backward pass; two are enough, because no weight wants the third, and the
product is cheap to make again.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

PROJECTION_NAMES = ("gate_proj", "up_proj", "down_proj")
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
    if children.keys() != set(PROJECTION_NAMES) or len(plain) != 3 or len(activations) != 1:
        return None
    if any(True for _ in activations[0].parameters()):
        return None
    gate, up, down = (plain[name] for name in PROJECTION_NAMES)
    return Glu(gate, up, down, activations[0])


@torch.no_grad()
def _computes(block: nn.Module, glu: Glu) -> bool:
    weight = glu.gate.weight
    if weight.is_meta:
        return True
    width_in = glu.gate.in_features
    # Not drawn at random: whoever asks must find the random state as it was.
    x = (
        torch.arange(2 * width_in, device=weight.device, dtype=torch.float32)
        .sin()
        .view(1, 2, width_in)
    )
    x = x.to(weight.dtype)
    found = block(x)
    return isinstance(found, Tensor) and torch.equal(found, glu(x))


def can_train_frozen(block: nn.Module, glu: Glu, x: Tensor) -> bool:
    """Whether `frozen_glu` may stand for `block` in this pass: gradients flow through it, to none
    of its weights.

    Not where somebody listens to the block or its parts (hooks, offloading), which would then miss
    the call.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return False
    projections = (glu.gate, glu.up, glu.down)
    if projections != tuple(getattr(block, name, None) for name in PROJECTION_NAMES):
        return False  # replaced since
    if any(
        parameter.requires_grad or parameter.is_meta
        for p in projections
        for parameter in p.parameters()
    ):
        return False
    same_dtype = x.dtype == glu.gate.weight.dtype or torch.is_autocast_enabled(x.device.type)
    return same_dtype and not any(
        _is_watched(module) for module in (block, glu.activation, *projections)
    )


def _is_watched(module: nn.Module) -> bool:
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def frozen_glu(glu: Glu, x: Tensor) -> Tensor:
    """(..., D) -> (..., D), as the block computes it, also under autocast; only x gets a
    gradient."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    weights = [p.weight.to(dtype) for p in (glu.gate, glu.up, glu.down)]
    biases = [None if p.bias is None else p.bias.to(dtype) for p in (glu.gate, glu.up, glu.down)]
    with torch.autocast(kind, enabled=False):
        out: Tensor = _FrozenGlu.apply(x.to(dtype), glu.activation, *weights, *biases)
    return out


class _FrozenGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, activation: nn.Module, *parameters: Any) -> Tensor:
        w_gate, w_up, w_down, b_gate, b_up, b_down = parameters
        gate, up = F.linear(x, w_gate, b_gate), F.linear(x, w_up, b_up)
        ctx.activation = activation
        ctx.save_for_backward(gate, up, w_gate, w_up, w_down)
        return F.linear(activation(gate) * up, w_down, b_down)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, w_gate, w_up, w_down = ctx.saved_tensors
        d_hidden = d_out @ w_down
        with torch.enable_grad():
            gate = gate.detach().requires_grad_()
            activated = ctx.activation(gate)
        d_up = activated.detach() * d_hidden
        (d_gate,) = torch.autograd.grad(activated, gate, d_hidden * up)
        d_x = d_gate @ w_gate + d_up @ w_up
        return (d_x, *(None for _ in range(7)))
