"""What an extended model consists of."""

import json
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from neutral_residues.errors import UserError
from neutral_residues.export.parts import extract_parts
from neutral_residues.tuner.config import NeutralResiduesConfig
from tiny_export import SIGMOID, assert_exact, exported, extended
from tiny_llama import perturb, tiny_llama


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_trained_head_comes_along(tmp_path: Path) -> None:
    model = extended(backbone={"tie_word_embeddings": True}, modules_to_save=["lm_head"], **SIGMOID)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(-1.0)
    assert_exact(exported(model, "qwen2_moe", tmp_path))
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]


def test_a_method_of_pefts_that_cannot_be_merged_is_refused() -> None:
    model = get_peft_model(
        tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).eval()
    with pytest.raises(UserError, match="PEFT cannot merge PROMPT_TUNING"):
        extract_parts(model)


def test_a_gate_that_reads_the_text_is_one_part() -> None:
    model = extended(gate_reads="tokens")
    model.add_adapter("own", NeutralResiduesConfig(width=4, gate_reads="layer"))
    model.base_model.set_adapter(["default", "own"])
    parts = extract_parts(model)
    reading, own = parts.adapters
    assert parts.has_reader
    assert parts.embeddings_name == "model.embed_tokens"
    assert (reading.has_bias, own.has_bias, own.reader) == (False, True, None)
    assert reading.reader is not None
    assert not hasattr(parts.backbone.model.embed_tokens, "base_layer")


def test_only_what_is_active_is_exported(tmp_path: Path) -> None:
    """The other adapter is also in a layer that has no active one."""
    model = extended()
    model.add_adapter("other", NeutralResiduesConfig(width=4, first_layer=0))
    perturb(model)
    answer = exported(model, "transformers", tmp_path)
    assert answer["outputs"] == 0.0
    residues = json.loads((tmp_path / "config.json").read_text())["residues"]
    assert [adapter["name"] for adapter in residues] == ["default"]


def test_where_an_adapter_has_no_module_one_of_the_same_shape_adds_nothing() -> None:
    (adapter,) = extract_parts(extended(**SIGMOID)).adapters
    missing, present = adapter.at("model.layers.0.mlp"), adapter.at("model.layers.1.mlp")
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    assert present is adapter.by_block["model.layers.1.mlp"]
    assert present(x).delta.abs().min() > 0
    assert missing.gate.weight.shape == present.gate.weight.shape
    assert not missing(x).delta.any()
