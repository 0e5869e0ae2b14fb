"""What stands beside the method, on several families: low-rank updates, block expansion, residues
beside attention."""

import re

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel

from families import FAMILIES, build, greedy
from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.methods.block_expansion import expand_blocks
from neutral_residues.methods.full import train_ffns
from neutral_residues.methods.low_rank import attach_lora, attach_osf
from tiny_llama import logits, perturb, tiny_llama

DENSE = ["llama", "qwen3", "gemma2", "gpt_neox", "olmo2", "phi3", "falcon", "bloom"]


def nearest_budget(error: UserError) -> float:
    """What the message of a budget that no whole size meets says can be set instead."""
    found = re.search(r"the nearest (?:is|are) ([0-9.]+)", str(error))
    assert found
    return float(found[1])


def on_its_nearest_budget(family: str, attach: object) -> tuple[torch.Tensor, nn.Module]:
    """Logits of the backbone, and the model attached on the budget that the refusal of 0.2
    names."""
    backbone = build(family, FAMILIES[family])
    before = logits(backbone)
    try:
        return before, attach(backbone, 0.2).eval()  # type: ignore[operator]
    except UserError as error:
        if "the nearest" not in str(error):
            raise
        backbone = build(family, FAMILIES[family])
        return before, attach(backbone, nearest_budget(error)).eval()  # type: ignore[operator]


def lora(model: PreTrainedModel, budget: float) -> nn.Module:
    return attach_lora(model, budget=budget, only_ffn=False, alpha=None, alpha_over_rank=2.0)


@pytest.mark.parametrize("family", [*DENSE, "gpt2", "phimoe", "qwen2_moe"])
def test_lora_meets_the_budget_that_is_named(family: str) -> None:
    before, model = on_its_nearest_budget(family, lora)
    assert torch.equal(logits(model), before)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("family", DENSE)
def test_osf_is_the_backbone_at_the_start(family: str) -> None:
    before, model = on_its_nearest_budget(
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


@pytest.mark.parametrize("family", [*DENSE, "gpt2"])
def test_an_expanded_model_is_the_backbone_and_generates(family: str) -> None:
    before, model = on_its_nearest_budget(
        family, lambda model, budget: expand_blocks(model, budget=budget)
    )
    assert model.config.num_hidden_layers == FAMILIES[family].get("num_hidden_layers", 2) + 1
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-5)
    assert torch.equal(greedy(model, use_cache=True), greedy(model, use_cache=False))


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("qwen2_moe", "cannot expand Qwen2MoeForCausalLM; got silent copies change its logits"),
        ("mixtral", "output projections of MixtralDecoderLayer were not found; got 1 of 2"),
        ("deepseek_v3", "block expansion needs layers of one size"),
        ("gemma4_text", "cannot expand Gemma4ForCausalLM"),
    ],
)
def test_what_cannot_be_expanded_is_refused(family: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        on_its_nearest_budget(family, lambda model, budget: expand_blocks(model, budget=budget))


@pytest.mark.parametrize("family", [*DENSE, "gpt2", "mixtral", "gpt_oss"])
def test_residues_beside_attention(family: str) -> None:
    backbone = build(family, FAMILIES[family])
    before = logits(backbone)
    model = get_peft_model(backbone, NeutralResiduesConfig(width=8, placement="attention")).eval()
    assert all("att" in name.rsplit(".", 1)[1] for name in residue_layers(model))
    assert torch.equal(logits(model), before)
    perturb(model)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(greedy(model, use_cache=True), greedy(model, use_cache=False))


def test_placement_is_saved_and_never_ignored(tmp_path: object) -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, placement="attention"))
    model.save_pretrained(tmp_path)
    loaded = NeutralResiduesConfig.from_pretrained(tmp_path)
    assert (loaded.placement, len(loaded.target_modules)) == ("attention", 2)
    with pytest.raises(UserError, match="placement; got head; allowed: ffn, attention"):
        NeutralResiduesConfig(placement="head")
    with pytest.raises(UserError, match="placement has no effect with target_modules"):
        NeutralResiduesConfig(placement="attention", target_modules=["mlp"])


def test_fine_tuning_of_the_ffn_leaves_the_rest_frozen() -> None:
    model = train_ffns(tiny_llama())
    assert {("mlp" in name) for name, p in model.named_parameters() if p.requires_grad} == {True}
    assert all(p.requires_grad for name, p in model.named_parameters() if "mlp" in name)
