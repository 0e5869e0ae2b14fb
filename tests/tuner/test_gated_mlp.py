"""Which blocks are plain gated MLPs, and that nothing else is taken for one."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES
from neutral_residues.tuner.blocks import find_blocks
from neutral_residues.tuner.gated_mlp import as_gated_mlp


def blocks(family: str, **changes: Any) -> list[nn.Module]:
    config = AutoConfig.for_model(family, **FAMILIES[family] | changes)
    return list(find_blocks(AutoModelForCausalLM.from_config(config).eval(), "ffn").values())


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma3_text", "olmo2", "smollm3"]
)
def test_a_plain_gated_mlp_is_known(family: str) -> None:
    x = torch.randn(3, 32)
    for block in blocks(family):
        mlp = as_gated_mlp(block)
        assert mlp is not None
        assert torch.equal(mlp(x), block(x))


@pytest.mark.parametrize(
    "family", ["phi3", "gpt_neox", "mixtral", "qwen2_moe", "nemotron", "bitnet"]
)
def test_another_block_is_not(family: str) -> None:
    assert [as_gated_mlp(block) for block in blocks(family)] == [None, None]


def test_the_names_alone_do_not_decide() -> None:
    same_names = blocks("falcon_h1", mlp_multipliers=[2.0, 1.0])
    assert as_gated_mlp(same_names[0]) is None


def test_asking_leaves_the_random_state() -> None:
    block = blocks("llama")[0]
    before = torch.random.get_rng_state()
    as_gated_mlp(block)
    assert torch.equal(before, torch.random.get_rng_state())
