"""One contract for every family of decoders, wherever its feed-forward block is and however that is
called."""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, Gemma3ForConditionalGeneration

from families import DENSE, FAMILIES, WITHOUT_FFN, build, greedy
from neutral_residues import NeutralResiduesConfig, UserError, per_request, residue_layers
from neutral_residues.tuner.gates import extension_digest, gates, set_thresholds
from neutral_residues.tuner.layer import layer_numbers
from neutral_residues.tuner.routing import BACKBONE
from neutral_residues.tuner.thresholds import Thresholds
from tiny_llama import logits, perturb, token_ids

FFN_LAYERS = {"nemotron_h": [1, 3]}
"""Where not every layer has a feed-forward block: the numbers of those that have one."""


@pytest.mark.parametrize("gate_reads", ["layer", "tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family: str, gate_reads: str, tmp_path: Path) -> None:
    backbone = build(family, FAMILIES[family])
    untouched = copy.deepcopy(backbone)
    expected = logits(backbone)

    config = NeutralResiduesConfig(width=8, gate_reads=gate_reads)
    model = get_peft_model(backbone, config).eval()
    layers = residue_layers(model)
    *_, head = layers.values()
    every_layer = range(backbone.config.num_hidden_layers)
    assert layer_numbers(layers) == (*FFN_LAYERS.get(family, every_layer), "head")
    assert torch.equal(logits(model), expected), "identity at the start"

    perturb(head)
    assert not torch.allclose(logits(model), expected, atol=1e-3), "the head's has an effect"
    perturb(model)
    extended = logits(model)
    assert not torch.allclose(extended, expected, atol=1e-3), "enabled, it has an effect"
    with model.disable_adapter():
        assert torch.equal(logits(model), expected), "disabled, it has none"

    assert_every_adapter_weight_learns(model)
    assert torch.equal(greedy(model, use_cache=True), greedy(model, use_cache=False))

    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(untouched, tmp_path)), extended), (
        "saved and loaded"
    )


def assert_every_adapter_weight_learns(model: PeftModel) -> None:
    """In train mode, as a user would; every tensor of every layer gets a gradient and the backbone
    none."""
    model.train()
    ids = token_ids(batch=4, length=16)
    model(input_ids=ids, labels=ids).loss.backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not without
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    model.eval()
    model.zero_grad()


@pytest.mark.parametrize("family", WITHOUT_FFN)
def test_a_model_without_a_feed_forward_module_is_refused(family: str) -> None:
    backbone = build(family, WITHOUT_FFN[family])
    with pytest.raises(
        UserError, match=r"no feed-forward module.*children .*fc1.*set target_modules"
    ):
        get_peft_model(backbone, NeutralResiduesConfig(width=8))


@pytest.mark.parametrize(
    ("family", "jitter"), [("mixtral", "router_jitter_noise"), ("phimoe", "input_jitter_noise")]
)
def test_a_router_that_writes_noise_into_its_input_trains(family: str, jitter: str) -> None:
    backbone = build(family, FAMILIES[family] | {jitter: 0.1})
    assert_every_adapter_weight_learns(
        perturb(get_peft_model(backbone, NeutralResiduesConfig(width=8)))
    )


def test_only_the_decoder_of_a_multimodal_model_is_extended() -> None:
    text = FAMILIES["gemma3_text"]
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    backbone = Gemma3ForConditionalGeneration(config).eval()
    assert any("vision" in name and name.endswith(".mlp") for name, _ in backbone.named_modules())
    model = get_peft_model(backbone, NeutralResiduesConfig(width=8))
    assert [name.removeprefix("base_model.model.") for name in residue_layers(model)] == [
        "model.language_model.layers.0.mlp",
        "model.language_model.layers.1.mlp",
        "lm_head",
    ]


@pytest.mark.parametrize("family", [*DENSE, "gpt2", "mixtral", "gpt_oss"])
def test_residues_parallel_to_attention(family: str) -> None:
    backbone = build(family, FAMILIES[family])
    before = logits(backbone)
    model = get_peft_model(backbone, NeutralResiduesConfig(width=8, placement="attention")).eval()
    *blocks, _ = residue_layers(model)
    assert all("att" in name.rsplit(".", 1)[1] for name in blocks)
    assert torch.equal(logits(model), before)
    perturb(model)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model), before)
    assert torch.equal(greedy(model, use_cache=True), greedy(model, use_cache=False))


@torch.no_grad()
def routed(model: nn.Module, names: list[str]) -> Tensor:
    with per_request(model, names):
        return logits(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_off_is_the_backbone_that_was_never_extended(family: str) -> None:
    """The switch is a guarantee: off for a request, or for all, is exact by construction."""
    never = build(family, FAMILIES[family])
    expected = logits(never)
    config = NeutralResiduesConfig(width=8, gate_reads="tokens")
    model = perturb(get_peft_model(copy.deepcopy(never), config)).eval()
    off, on = [BACKBONE] * 2, ["default"] * 2
    assert len(token_ids()) == 2
    assert not torch.allclose(routed(model, on), expected, atol=1e-3), "on, it has an effect"
    assert torch.equal(routed(model, off), expected)
    mixed = routed(model, [BACKBONE, "default"])
    torch.testing.assert_close(mixed[0], expected[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(mixed[1], expected[1], atol=1e-3)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)

    thresholds = Thresholds("cut", dict.fromkeys(gates(model), 0.5), extension_digest(model))
    set_thresholds(model, thresholds)
    assert torch.equal(routed(model, off), expected), "calibrated, too"
    assert torch.equal(logits(model.unload()), expected), "undone"
