"""A frozen gated MLP has the outputs and gradients of the block itself, from fewer activations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from families import FAMILIES, build
from neutral_residues.tuner.blocks import find_blocks
from neutral_residues.tuner.frozen_mlp import can_train_frozen, frozen_forward
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp


def frozen_block(family: str) -> tuple[nn.Module, GatedMLP]:
    block = next(iter(find_blocks(build(family, FAMILIES[family]), "ffn").values()))
    mlp = as_gated_mlp(block.requires_grad_(False))
    assert mlp is not None
    return block, mlp


def gradients(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = run(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out.float() * weights).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_frozen_block_has_the_same_output_and_gradient(family: str, autocast: bool) -> None:
    block, mlp = frozen_block(family)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(block, x)
        found = gradients(lambda x: frozen_forward(mlp, x), x)
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if autocast else {"atol": 1e-6, "rtol": 1e-5}
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerance)


def kept_for_backward(run: Callable[[Tensor], Tensor], block: nn.Module) -> int:
    """Numbers that autograd keeps, parameters not counted."""
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in block.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = (
                tensor.untyped_storage().nbytes() // tensor.element_size()
            )
        return tensor

    x = torch.randn(8, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(x)
    return sum(kept.values())


def test_the_frozen_block_keeps_two_activations_instead_of_three() -> None:
    block, mlp = frozen_block("llama")
    assert kept_for_backward(block, block) == 3 * 8 * 48
    assert kept_for_backward(lambda x: frozen_forward(mlp, x), block) == 2 * 8 * 48


def test_where_the_short_way_is_not_taken() -> None:
    block, mlp = frozen_block("llama")
    x = torch.randn(2, 32, requires_grad=True)
    assert can_train_frozen(block, mlp, x)
    with torch.no_grad():
        assert not can_train_frozen(block, mlp, x)
    assert not can_train_frozen(block, mlp, x.detach())
    assert not can_train_frozen(block, mlp, x.detach().bfloat16().requires_grad_())
    handle = mlp.up.register_forward_hook(lambda module, args, out: None)
    assert not can_train_frozen(block, mlp, x)
    handle.remove()
    mlp.down.weight.requires_grad_(True)
    assert not can_train_frozen(block, mlp, x)
    mlp.down.weight.requires_grad_(False)
    block.gate_proj = nn.Linear(32, 48, bias=False).requires_grad_(False)
    assert not can_train_frozen(block, mlp, x)
