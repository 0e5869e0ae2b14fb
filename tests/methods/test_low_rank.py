"""LoRA and OSF on a budget, on several families: they meet it, and start as the backbone."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from families import DENSE, FAMILIES, build, on_nearest_budget
from neutral_residues import UserError
from neutral_residues.methods.low_rank import (
    attach_lora,
    attach_osf,
    embedding_weights,
    linear_modules,
)
from tiny_llama import logits


def lora(model: PreTrainedModel, budget: float) -> nn.Module:
    return attach_lora(model, budget=budget, only_ffn=False, alpha=None, alpha_over_rank=2.0)


@pytest.mark.parametrize("family", [*DENSE, "gpt2", "phimoe", "qwen2_moe"])
def test_lora_meets_the_budget_that_is_named(family: str) -> None:
    before, model = on_nearest_budget(family, lora)
    assert torch.equal(logits(model), before)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", [*DENSE, "gpt2"])
def test_embeddings_and_head_train_as_copies_that_stay_tied(family: str) -> None:
    before, model = on_nearest_budget(
        family,
        lambda model, budget: attach_lora(
            model, budget=budget, only_ffn=False, alpha_over_rank=2.0, embeddings=True
        ),
    )
    assert torch.equal(logits(model), before)
    backbone = model.get_base_model()
    tied = backbone.get_input_embeddings().weight is backbone.get_output_embeddings().weight
    weights = embedding_weights(model)
    assert tied == bool(backbone.config.tie_word_embeddings)
    assert len(weights) == (1 if tied else 2)
    with torch.no_grad():
        for weight in weights:
            weight.mul_(2)
    after = logits(model)
    assert not torch.allclose(after, before)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model.merge_and_unload()), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", DENSE)
def test_osf_is_the_backbone_at_the_start(family: str) -> None:
    before, model = on_nearest_budget(
        family, lambda model, budget: attach_osf(model, budget=budget)
    )
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-4)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)


def test_osf_refuses_layers_it_would_pass_over() -> None:
    with pytest.raises(
        UserError, match=r"osf works on nn\.Linear layers only; got transformer\.h\.0\.attn\.c_attn"
    ):
        attach_osf(build("gpt2", FAMILIES["gpt2"]), budget=0.2)


def test_layers_without_a_feed_forward_block_have_linear_layers_too() -> None:
    model = build("nemotron_h", FAMILIES["nemotron_h"])

    def layers(*, only_ffn: bool) -> set[str]:
        return {name.split(".")[2] for name in linear_modules(model, only_ffn=only_ffn)}

    assert layers(only_ffn=True) == {"1", "3"}
    assert layers(only_ffn=False) == {"0", "1", "2", "3"}
