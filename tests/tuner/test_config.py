"""The PEFT config: what it refuses, which layers it chooses, and that it survives its file."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, get_peft_model

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from tiny_llama import extended_llama, logits, saved, tiny_llama


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_gate": "tanh"}, "block_gate; got tanh; allowed: relu, elu, sigmoid, none"),
        ({"init": "big"}, "init; got big; allowed: usual, paper"),
        ({"width": 0}, "width; got 0; allowed: a whole number, 1 or more"),
        ({"width": 8.0}, "width; got 8.0"),
        ({"width": True}, "width; got True"),
        ({"budget": 0}, "budget; got 0; allowed: a share above 0"),
        ({"budget": -0.1}, "budget; got -0.1"),
        ({"budget": float("nan")}, "budget; got nan"),
        ({"budget": "20%"}, "budget; got 20%"),
        (
            {"activation": "swiglu"},
            "activation; got swiglu; allowed: one of Transformers', without weights; ",
        ),
        (
            {"activation": "prelu"},
            "activation; got prelu; allowed: one of Transformers', without weights",
        ),
        (
            {"target_modules": ".*mlp", "layers_to_transform": [0]},
            "layers_to_transform has no effect",
        ),
        ({"layers_pattern": "layers"}, "layers_pattern has no effect without layers_to_transform"),
        ({"first_layer": 1, "layers_to_transform": [1]}, "first_layer has no effect with layers"),
        ({"placement": "head"}, "placement; got head; allowed: ffn, attention"),
        (
            {"placement": "attention", "target_modules": ["mlp"]},
            "placement has no effect with target_modules",
        ),
        ({"gate_start": "half"}, "gate_start: half needs block_gate: sigmoid; got relu"),
        ({"gate_start": "half", "block_gate": "none"}, "half needs block_gate: sigmoid; got none"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NeutralResiduesConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"gate_reads": "layer"}, [1, 2, 3]),
        ({}, [0, 1, 2, 3]),
        ({"block_gate": "none", "gate_reads": "layer"}, [0, 1, 2, 3]),
        ({"first_layer": 0}, [0, 1, 2, 3]),
        ({"first_layer": 2}, [2, 3]),
        ({"layers_to_transform": [0, 3]}, [0, 3]),
    ],
)
def test_a_gate_in_each_layer_leaves_the_first_alone(settings: dict, layers: list[int]) -> None:
    config = NeutralResiduesConfig(width=8, **settings)
    model = get_peft_model(tiny_llama(num_hidden_layers=4), config)
    *blocks, _ = [name.removeprefix("base_model.model.") for name in residue_layers(model)]
    assert blocks == [f"model.layers.{layer}.mlp" for layer in layers]


def test_a_config_used_again_starts_from_fresh_weights(tmp_path: Path) -> None:
    config = NeutralResiduesConfig(width=8)
    get_peft_model(tiny_llama(), config)
    for again in (config, copy.deepcopy(config)):
        assert torch.equal(logits(get_peft_model(tiny_llama(), again).eval()), logits(tiny_llama()))


def test_a_config_from_disk_without_its_weights_is_an_error_that_says_what_to_do(
    tmp_path: Path,
) -> None:
    config = PeftConfig.from_pretrained(saved(extended_llama(), tmp_path))
    with pytest.raises(
        UserError, match=r"never loaded.*dataclasses.replace\(config, num_new_weights=None\)"
    ):
        logits(get_peft_model(tiny_llama(), config))
    fresh = dataclasses.replace(config, num_new_weights=None)
    assert torch.equal(logits(get_peft_model(tiny_llama(), fresh).eval()), logits(tiny_llama()))


def test_the_config_survives_json(tmp_path: Path) -> None:
    model = extended_llama(block_gate="sigmoid", layers_to_transform=[1], init="usual")
    config = model.peft_config["default"]
    loaded = PeftConfig.from_pretrained(saved(model, tmp_path))
    # PEFT itself marks what it saves as being for inference, and names the backbone's class; all
    # else is the same.
    by_peft = {"inference_mode": config.inference_mode, "auto_mapping": config.auto_mapping}
    assert dataclasses.replace(loaded, **by_peft) == config
    assert loaded.num_new_weights == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert loaded.backbone == {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64}
    assert "from_checkpoint" not in json.loads((tmp_path / "adapter_config.json").read_text())


def test_placement_is_saved(tmp_path: object) -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, placement="attention"))
    model.save_pretrained(tmp_path)
    loaded = NeutralResiduesConfig.from_pretrained(tmp_path)
    assert (loaded.placement, len(loaded.target_modules)) == ("attention", 2)
