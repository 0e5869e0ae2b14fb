"""A fused block is the extended block: every gate, several adapters, several families, decoding and
routing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES
from neutral_residues import NeutralResiduesConfig, UserError
from neutral_residues.experimental.fused import FusedBlock, fuse
from neutral_residues.tuner.gates import extension_digest, gates, set_thresholds
from neutral_residues.tuner.layer import no_skipping
from neutral_residues.tuner.routing import BACKBONE, per_request
from neutral_residues.tuner.thresholds import Thresholds
from tiny_llama import (
    extended_llama,
    logits,
    outputs,
    perturb,
    set_gates,
    tiny_llama,
    token_ids,
    two_adapters,
)


def blocks(model: nn.Module) -> list[FusedBlock]:
    return [module for module in model.modules() if isinstance(module, FusedBlock)]


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Up to rounding of the largest logit."""
    tolerance = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize(
    "settings", [{}, {"block_gate": "sigmoid"}, {"block_gate": "elu"}, {"block_gate": "none"}]
)
@pytest.mark.parametrize("open_share", [0.0, 0.3, 1.0])
def test_it_is_the_plain_path(settings: dict[str, Any], open_share: float) -> None:
    model = extended_llama(**settings)
    if settings.get("block_gate") != "none":
        set_gates(model, open_share)
    with no_skipping(model):
        expected, few = outputs(model), logits(model)
    backbone = outputs(tiny_llama())
    assert torch.allclose(expected, backbone) == (open_share == 0 and not settings)
    fused = fuse(model)
    assert len(blocks(fused)) == 2
    assert fused.lm_head.is_head  # its residue stays as it is
    assert_same(outputs(fused), expected)
    assert_same(logits(fused), few)
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    assert_same(outputs(compiled), expected)


def test_a_gate_that_reads_the_text() -> None:
    model = two_adapters()
    model.add_adapter("danish", NeutralResiduesConfig(width=8, gate_reads="tokens"))
    perturb(model, seed=5)
    names = ["french", BACKBONE, "danish", "danish", BACKBONE, "french", "french", "german"]
    mixed = outputs(model, adapter_names=names)
    model.base_model.set_adapter(["french", "german", "danish"])
    expected = outputs(model)
    settings = {"max_new_tokens": 24, "do_sample": False, "attention_mask": torch.ones(1, 32)}
    generated = model.generate(input_ids=token_ids(1, 32), **settings)
    fused = fuse(model)
    assert_same(outputs(fused), expected)
    assert torch.equal(fused.generate(input_ids=token_ids(1, 32), **settings), generated)
    with per_request(fused, names):
        assert_same(outputs(fused), mixed)


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma", "gemma3_text"])
def test_families(family: str) -> None:
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **FAMILIES[family])
    ).eval()
    model = perturb(get_peft_model(backbone, NeutralResiduesConfig(width=8))).eval()
    expected = logits(model)
    assert_same(logits(fuse(model)), expected)


def test_biases_are_folded_in_too() -> None:
    model = perturb(
        get_peft_model(tiny_llama(mlp_bias=True), NeutralResiduesConfig(width=8))
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_proj.bias" in name:
                parameter.normal_()
    expected = logits(model)
    assert_same(logits(fuse(model)), expected)


def test_generations_are_the_same_token_by_token() -> None:
    model = extended_llama()
    set_gates(model, 0.3)
    settings = {
        "max_new_tokens": 24,
        "min_new_tokens": 24,
        "do_sample": False,
        "attention_mask": torch.ones(1, 32),
    }
    with no_skipping(model):
        expected = model.generate(input_ids=token_ids(1, 32), **settings)
    assert torch.equal(fuse(model).generate(input_ids=token_ids(1, 32), **settings), expected)


def test_several_adapters_and_a_name_for_each_row() -> None:
    model = two_adapters()
    names = ["french", BACKBONE, "german", "german", BACKBONE, "french", "french", "german"]
    expected = outputs(model, adapter_names=names)
    model.base_model.set_adapter(["french", "german"])
    both = outputs(model)
    fused = fuse(model)
    assert_same(outputs(fused), both)
    with per_request(fused, names):
        assert_same(outputs(fused), expected)
    assert_same(outputs(fused), both)
    with per_request(fused, names[:4]), pytest.raises(UserError, match="got 4 names for 8 rows"):
        outputs(fused)
    with per_request(fused, names[:4], rows_per_name=2):
        outputs(fused)
    with pytest.raises(
        UserError, match="not loaded; got frensh; allowed: french, german, or __base__"
    ):
        per_request(fused, ["frensh"]).__enter__()


def test_layers_without_a_residue_stay_as_they_are() -> None:
    model = extended_llama(layers_to_transform=[1])
    expected = logits(model)
    fused = fuse(model)
    assert len(blocks(fused)) == 1
    assert_same(logits(fused), expected)


def test_it_holds_no_weight_twice() -> None:
    model = extended_llama()
    num_weights = sum(p.numel() for p in model.parameters())
    fused = fuse(model)
    held = sum(t.numel() for t in [*fused.parameters(), *(b.wide_in for b in blocks(fused))])
    held += sum(b.wide_out.numel() + (0 if b.bias_in is None else 2) for b in blocks(fused))
    assert abs(held - num_weights) <= 4


def test_a_fused_model_neither_trains_nor_saves(tmp_path: Path) -> None:
    fused = fuse(extended_llama())
    with pytest.raises(UserError, match="a fused model cannot train; train the extension itself"):
        fused.train()(input_ids=token_ids())
    with pytest.raises(UserError, match="a fused model cannot be saved"):
        fused.save_pretrained(tmp_path / "folder")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="a fused model cannot be saved"):
        fused.state_dict()


def test_what_cannot_be_fused() -> None:
    with pytest.raises(UserError, match="no enabled neutral residues to fuse"):
        fuse(tiny_llama())
    backbone = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt_neox", **FAMILIES["gpt_neox"])
    )
    with pytest.raises(UserError, match=r"can be fused; got GPTNeoXMLP; allowed: down\(act\(gate"):
        fuse(get_peft_model(backbone, NeutralResiduesConfig(width=8)).eval())


def test_a_bfloat16_backbone_is_fused_in_bfloat16() -> None:
    model = perturb(get_peft_model(tiny_llama().bfloat16(), NeutralResiduesConfig(width=8))).eval()
    expected = logits(model).float()
    fused = fuse(model)
    assert {block.wide_in.dtype for block in blocks(fused)} == {torch.bfloat16}
    difference = (logits(fused).float() - expected).abs().max()
    assert difference < 0.05 * expected.abs().max()


@pytest.mark.parametrize("reads", ["tokens", "layer"])
def test_thresholds_are_fused_too(reads: str) -> None:
    model = extended_llama(gate_reads=reads)
    trained = outputs(model)
    values = dict.fromkeys(gates(model), 1.0)
    set_thresholds(model, Thresholds("cut", values, extension_digest(model)))
    with no_skipping(model):
        expected = outputs(model)
    assert not torch.allclose(expected, trained, atol=1e-3)
    assert_same(outputs(fuse(model)), expected)
