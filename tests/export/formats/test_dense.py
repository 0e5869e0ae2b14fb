"""A gate-less adapter as a wider feed-forward block of the same stock model."""

import json
from pathlib import Path
from typing import Any

import pytest

from neutral_residues.tuner.config import NeutralResiduesConfig
from tiny_export import NEW_TOKENS, assert_exact, assert_refused, exported, extended
from tiny_llama import perturb

GATELESS = {"block_gate": "none"}


@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        ("llama", {}),
        ("llama", {"mlp_bias": True}),
        ("llama", {"tie_word_embeddings": True}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma", {}),
        ("gemma3_text", {}),
        ("olmo2", {}),
    ],
)
def test_it_is_exactly_the_wider_backbone(
    tmp_path: Path, family: str, backbone: dict[str, Any]
) -> None:
    model = extended(family, backbone=backbone, **GATELESS)
    stock = type(model.get_base_model()).__name__
    assert_exact(exported(model, "dense", tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architectures"], config["intermediate_size"]) == ([stock], 48 + 8)
    assert not config["tie_word_embeddings"]


def test_without_a_residue_on_the_head_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = extended(backbone={"tie_word_embeddings": True}, head_rank=0, **GATELESS)
    assert_exact(exported(model, "dense", tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]


def test_several_adapters_make_it_wider_still(tmp_path: Path) -> None:
    model = extended(**GATELESS)
    model.add_adapter("second", NeutralResiduesConfig(width=4, layers_to_transform=[0], **GATELESS))
    model.base_model.set_adapter(["default", "second"])
    perturb(model)
    assert_exact(exported(model, "dense", tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["intermediate_size"] == 48 + 8 + 4


@pytest.mark.parametrize(
    ("family", "settings", "reason"),
    [
        ("llama", {}, "its relu gate depends on the token"),
        ("llama", GATELESS | {"activation": "gelu"}, "one activation, silu; this adapter has gelu"),
        (
            "llama",
            GATELESS | {"placement": "attention"},
            "this adapter is parallel to model.layers.1.self_attn",
        ),
        ("gpt_neox", GATELESS, r"gpt_neox.layers.0.mlp is not a gated MLP"),
        ("llama", GATELESS | NEW_TOKENS, "its 12 new tokens are not rows of the backbone's tables"),
        ("phi3", GATELESS, r"model.layers.0.mlp is not a gated MLP"),
    ],
)
def test_it_says_why_not(
    tmp_path: Path, family: str, settings: dict[str, Any], reason: str
) -> None:
    assert_refused(extended(family, **settings), "dense", tmp_path, reason)
