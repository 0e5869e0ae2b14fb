"""A sigmoid gate as the shared expert of stock mixtures of experts: which backbones, and why not
the others."""

import json
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

from neutral_residues.tuner.config import NeutralResiduesConfig
from tiny_export import MIXTURE, assert_exact, assert_refused, exported, extended

LLAMA3_ROPE = {
    "rope_theta": 500000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("family", "backbone"),
    [
        ("llama", {}),
        ("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
        ("llama", {"head_dim": 16}),
        ("mistral", {"sliding_window": 8}),
        ("mistral", {"sliding_window": None}),
        ("ministral", {}),
        ("qwen2", {}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("gemma", {}),
        ("gemma", {"head_dim": 16, "rms_norm_eps": 1e-5}),
    ],
)
def test_it_is_exactly_a_qwen2_moe(tmp_path: Path, family: str, backbone: dict[str, Any]) -> None:
    assert_exact(exported(extended(family, backbone=backbone, **MIXTURE), "qwen2_moe", tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2MoeForCausalLM"]
    # As other runtimes want it.
    assert config["mlp_only_layers"] == []
    assert not config["tie_word_embeddings"]
    assert "auto_map" not in config


@pytest.mark.parametrize(
    "backbone", [{}, {"attention_bias": True, "tie_word_embeddings": True, "head_dim": 16}]
)
def test_it_is_exactly_a_qwen3_next(tmp_path: Path, backbone: dict[str, Any]) -> None:
    assert_exact(exported(extended("qwen3", backbone=backbone, **MIXTURE), "qwen3_next", tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "Qwen3NextForCausalLM"
    ]


def two_adapters() -> PeftModel:
    model = extended(**MIXTURE)
    model.add_adapter("second", NeutralResiduesConfig(width=4, **MIXTURE))
    model.base_model.set_adapter(["default", "second"])
    return model


@pytest.mark.parametrize(
    ("family", "backbone", "settings", "reason"),
    [
        ("llama", {}, {"head_rank": 0}, r"gate; this one is relu \(train neutral-sigmoid\)"),
        ("llama", {}, {"head_rank": 0, "block_gate": "none"}, "sigmoid gate; this one is none"),
        ("llama", {}, MIXTURE | {"head_rank": 4}, "a residue on it; train with residues.head_rank"),
        (
            "llama",
            {},
            MIXTURE | {"gate_start": "open", "gate_reads": "tokens"},
            "train with residues.gate_reads: layer",
        ),
        (
            "llama",
            {},
            MIXTURE | {"gate_start": "open"},
            "no bias, and this one has; train with residues.gate_start: half",
        ),
        ("llama", {}, MIXTURE | {"activation": "gelu"}, "activation silu; this adapter has gelu"),
        (
            "llama",
            {},
            MIXTURE | {"placement": "attention"},
            "this adapter to model.layers.1.self_attn",
        ),
        ("llama", {"attention_bias": True}, MIXTURE, "no bias after the heads"),
        (
            "llama",
            {"mlp_bias": True},
            MIXTURE,
            "gated MLPs without biases; model.layers.0.mlp is not",
        ),
        ("gemma2", {}, MIXTURE, "holds backbones of the types llama, .*; this one is gemma2"),
        ("qwen3", {}, MIXTURE, "this one is qwen3"),
        ("gpt_neox", {}, MIXTURE, "this one is gpt_neox"),
    ],
)
def test_it_says_why_not(
    tmp_path: Path, family: str, backbone: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    assert_refused(extended(family, backbone=backbone, **settings), "qwen2_moe", tmp_path, reason)


def test_it_holds_one_adapter(tmp_path: Path) -> None:
    assert_refused(two_adapters(), "qwen2_moe", tmp_path, "one adapter; this model has 2")


def test_qwen3_next_has_no_sliding_window(tmp_path: Path) -> None:
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    assert_refused(
        extended("qwen3", backbone=window, **MIXTURE), "qwen3_next", tmp_path, "no sliding window"
    )
