"""A forward pass of a frozen gated MLP that stores less memory for the backward pass.

Autograd stores three activations of the FFN's width; two are enough, because the weights need no
gradient and the product of the two is cheap to compute again.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neutral_residues.tuner.gated_mlp import PROJECTION_NAMES, GatedMLP


def can_train_frozen(block: nn.Module, mlp: GatedMLP, x: Tensor) -> bool:
    """Whether `frozen_forward` can replace the forward pass of `block`: a gradient flows through
    it, none of its weights is trainable, and it has no hooks (offloading), which would not run."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return False
    if mlp.projections != tuple(getattr(block, name, None) for name in PROJECTION_NAMES):
        return False  # a projection was replaced after `mlp` was made
    parameters = [p for linear in mlp.projections for p in linear.parameters()]
    if any(p.requires_grad or p.is_meta for p in parameters):
        return False
    if x.dtype != mlp.gate.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return False
    return not any(_has_hooks(module) for module in (block, mlp.activation, *mlp.projections))


def _has_hooks(module: nn.Module) -> bool:
    forward = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def frozen_forward(mlp: GatedMLP, x: Tensor) -> Tensor:
    """(..., D) -> (..., D), the same output as the block, also under autocast; only `x` gets a
    gradient."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    weights = [p.weight.to(dtype) for p in mlp.projections]
    biases = [None if p.bias is None else p.bias.to(dtype) for p in mlp.projections]
    with torch.autocast(kind, enabled=False):
        out: Tensor = _FrozenMLP.apply(x.to(dtype), mlp.activation, *weights, *biases)
    return out


class _FrozenMLP(torch.autograd.Function):
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
