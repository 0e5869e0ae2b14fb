"""Which blocks are plain gated linear units, and that nothing else is taken for one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES
from neutral_residues.tuner.blocks import find_blocks
from neutral_residues.tuner.gated_mlp import can_train_frozen, frozen_glu, plain_glu


def blocks(family: str, **changes: Any) -> list[nn.Module]:
    config = AutoConfig.for_model(family, **FAMILIES[family] | changes)
    return list(find_blocks(AutoModelForCausalLM.from_config(config).eval(), "ffn").values())


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "olmo2", "smollm3"]
)
def test_a_plain_gated_unit_is_known(family: str) -> None:
    x = torch.randn(3, 32)
    for block in blocks(family):
        glu = plain_glu(block)
        assert glu is not None
        assert torch.equal(glu(x), block(x))


@pytest.mark.parametrize(
    "family", ["phi3", "gpt_neox", "mixtral", "qwen2_moe", "nemotron", "bitnet"]
)
def test_another_block_is_not(family: str) -> None:
    assert [plain_glu(block) for block in blocks(family)] == [None, None]


def test_the_names_alone_do_not_decide() -> None:
    same_names = blocks("falcon_h1", mlp_multipliers=[2.0, 1.0])
    assert plain_glu(same_names[0]) is None


def test_asking_leaves_the_random_state() -> None:
    block = blocks("llama")[0]
    before = torch.random.get_rng_state()
    plain_glu(block)
    assert torch.equal(before, torch.random.get_rng_state())


# ---- training around frozen weights ----


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
    block = blocks(family)[0].requires_grad_(False)
    glu = plain_glu(block)
    assert glu is not None
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = gradients(block, x)
        found = gradients(lambda x: frozen_glu(glu, x), x)
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
    block = blocks("llama")[0].requires_grad_(False)
    glu = plain_glu(block)
    assert glu is not None
    assert kept_for_backward(block, block) == 3 * 8 * 48
    assert kept_for_backward(lambda x: frozen_glu(glu, x), block) == 2 * 8 * 48


def test_where_the_short_way_is_not_taken() -> None:
    block = blocks("llama")[0].requires_grad_(False)
    glu = plain_glu(block)
    assert glu is not None
    x = torch.randn(2, 32, requires_grad=True)
    assert can_train_frozen(block, glu, x)
    with torch.no_grad():
        assert not can_train_frozen(block, glu, x)
    assert not can_train_frozen(block, glu, x.detach())
    assert not can_train_frozen(block, glu, x.detach().bfloat16().requires_grad_())
    handle = glu.up.register_forward_hook(lambda module, args, out: None)
    assert not can_train_frozen(block, glu, x)
    handle.remove()
    glu.down.weight.requires_grad_(True)
    assert not can_train_frozen(block, glu, x)
    glu.down.weight.requires_grad_(False)
    block.gate_proj = nn.Linear(32, 48, bias=False).requires_grad_(False)
    assert not can_train_frozen(block, glu, x)
