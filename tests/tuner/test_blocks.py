"""Which blocks are extended, and what the host model says about itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.tuner.blocks import count_backbone_weights
from tiny_llama import extended_llama, logits, saved, tiny_llama


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, [0, 1]),
        ({"layers_to_transform": [1]}, [1]),
        ({"layers_to_transform": 0}, [0]),
        ({"exclude_modules": ["layers.0.mlp"]}, [1]),
        ({"target_modules": ["mlp"]}, [0, 1]),
        ({"target_modules": ["mlp"], "layers_to_transform": [0]}, [0]),
        ({"target_modules": ["layers.1.mlp"]}, [1]),
        ({"target_modules": r".*\.0\.mlp"}, [0]),
    ],
)
def test_the_chosen_layers_are_extended(
    settings: dict[str, Any], layers: list[int], tmp_path: Path
) -> None:
    model = extended_llama(**settings)
    *blocks, _ = residue_layers(model)
    assert [int(name.split(".")[-2]) for name in blocks] == layers
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.peft_config["default"].num_new_weights == real
    loaded = PeftModel.from_pretrained(tiny_llama(), saved(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers_to_transform": [2]},
            r"layers_to_transform; got \[2\]; allowed: numbers from 0 to 1",
        ),
        ({"layers_to_transform": []}, r"layers_to_transform; got \[\]"),
        ({"target_modules": ["ffn"]}, "target_modules match no module"),
        (
            {"target_modules": r".*\.mlp.*"},
            r"inside another; got model.layers.0.mlp.\w+ inside model.layers.0.mlp;",
        ),
        ({"target_modules": ["down_proj"]}, "down_proj, which does not map width 32 to itself"),
    ],
)
def test_layers_that_cannot_be_extended_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, **settings))


def test_a_model_that_is_not_from_transformers_is_refused() -> None:
    with pytest.raises(UserError, match="model; got Sequential; allowed: a Transformers model"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), NeutralResiduesConfig(width=8))


@pytest.mark.parametrize(
    ("backbone", "activation", "expected"),
    [
        ("silu", None, "silu"),
        ("gelu", None, "gelu"),
        ("xielu", None, "silu"),
        ("silu", "relu", "relu"),
    ],
)
def test_the_activation_is_the_backbones_unless_set(
    backbone: str, activation: str | None, expected: str
) -> None:
    model = tiny_llama(hidden_act=backbone)
    config = get_peft_model(
        model, NeutralResiduesConfig(width=8, activation=activation)
    ).peft_config["default"]
    assert config.activation == expected


def test_the_activation_of_a_model_that_calls_it_otherwise() -> None:
    backbone = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    )
    assert (
        get_peft_model(backbone, NeutralResiduesConfig(width=8)).peft_config["default"].activation
        == "gelu_new"
    )


def test_a_second_adapter_is_sized_by_the_backbone_alone() -> None:
    model = extended_llama(modules_to_save=["lm_head"])
    num_backbone = sum(p.numel() for p in tiny_llama().parameters())
    assert count_backbone_weights(model) == num_backbone
    model.add_adapter("second", NeutralResiduesConfig(width=4))
    assert model.peft_config["second"].num_backbone_weights == num_backbone
