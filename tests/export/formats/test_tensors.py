"""The adapter alone: its formulas are Transformers', and its reference computes what the live
adapter does."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from neutral_residues.export.formats.tensors import ACTIVATIONS, write_tensors
from neutral_residues.export.parts import extract_parts
from neutral_residues.export.reference import record_reference
from neutral_residues.export.verify_child import compare_residues
from neutral_residues.tuner.blocks import activation_module
from tiny_export import NEW_TOKENS, SIGMOID, assert_refused, calibrated, extended


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_formulas_are_those_of_transformers(name: str) -> None:
    z = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(
        eval(ACTIVATIONS[name], {"torch": torch, "z": z}), activation_module(name)(z)
    )


@pytest.mark.parametrize(
    ("settings", "of_gate"),
    [
        ({"block_gate": "relu"}, {"block_gate.weight", "block_gate.bias"}),
        ({"block_gate": "elu", "gate_start": "random"}, {"block_gate.weight"}),
        (SIGMOID | {"activation": "gelu"}, {"block_gate.weight"}),
        ({"block_gate": "none", "placement": "attention"}, set()),
    ],
)
def test_the_reference_computes_the_residue(
    tmp_path: Path, settings: dict[str, Any], of_gate: set[str]
) -> None:
    model = extended(head_rank=6, **settings)
    reference = record_reference(model)
    write_tensors(extract_parts(model), tmp_path, torch.float32)
    answer = compare_residues(tmp_path, reference.of_residues())
    assert answer["outputs"] < 1e-5 < 1e-2 < answer["largest"]
    of_layer = {"gate.weight", "up.weight", "down.weight"} | of_gate
    of_head = {"up.weight", "down.weight"} | of_gate
    assert set(load_file(tmp_path / "model.safetensors")) == {
        *(f"layers.1.{name}" for name in of_layer),
        *(f"head.{name}" for name in of_head),
    }
    description = json.loads((tmp_path / "neutral_residues.json").read_text())
    assert list(description["layers"]) == ["1"]
    assert (description["D"], description["R"]) == (32, 8)
    assert description["head"]["module"] == "lm_head"
    assert (description["head"]["K"], description["head"]["V"]) == (6, 64)


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
def test_a_gate_that_reads_the_text_comes_along(tmp_path: Path, family: str) -> None:
    model = extended(family, gate_reads="tokens")
    reference = record_reference(model)
    write_tensors(extract_parts(model), tmp_path, torch.float32)
    answer = compare_residues(tmp_path, reference.of_residues())
    assert answer["outputs"] < 1e-5 < 1e-2 < answer["largest"]
    names = {name for name in load_file(tmp_path / "model.safetensors") if "gate." in name}
    of_gate = {"reader.block_gate.weight", "reader.block_gate.bias"}
    assert names == {"layers.1.gate.weight"} | of_gate
    description = json.loads((tmp_path / "neutral_residues.json").read_text())
    assert description["reader"]["module"] == "model.embed_tokens"
    tensors = reference.of_residues() | {"gate": -reference.gates["default"]}
    assert compare_residues(tmp_path, tensors)["outputs"] > 1e-2


@pytest.mark.parametrize("settings", [{}, {"block_gate": "none"}, {"head_rank": 0}])
def test_new_tokens_come_along(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = extended(**NEW_TOKENS | settings)
    reference = record_reference(model)
    write_tensors(extract_parts(model), tmp_path, torch.float32)
    answer = compare_residues(tmp_path, reference.of_residues())
    assert answer["outputs"] < 1e-5 < 1e-2 < answer["largest"]
    description = json.loads((tmp_path / "neutral_residues.json").read_text())["new_tokens"]
    assert description["modules"] == ["model.embed_tokens", "lm_head"]
    assert [description[key] for key in ("N", "K", "first_id")] == [12, 4, 64]
    module = runpy.run_path(str(tmp_path / "reference.py"))
    gate = {} if reference.gates == {} else {"g": reference.gates["default"]}
    logits = module["new_logits"](reference.new_tokens.head_inputs_BTD, **gate)
    torch.testing.assert_close(logits, reference.logits_BTV[..., 64:], atol=1e-5, rtol=1e-5)
    for wrong in ("embeddings", "logits"):
        tensors = reference.of_residues()
        tensors[f"new_tokens.{wrong}"] = -tensors[f"new_tokens.{wrong}"]
        assert compare_residues(tmp_path, tensors)["outputs"] > 1e-2


def test_without_a_residue_on_the_head_there_is_none(tmp_path: Path) -> None:
    write_tensors(extract_parts(extended(head_rank=0)), tmp_path, torch.float32)
    assert json.loads((tmp_path / "neutral_residues.json").read_text())["head"] is None
    assert "head" not in (tmp_path / "reference.py").read_text()


def test_an_activation_without_a_formula_is_refused(tmp_path: Path) -> None:
    assert_refused(extended(activation="mish"), "safetensors", tmp_path, "this adapter has mish")


def test_two_blocks_of_one_layer_are_refused(tmp_path: Path) -> None:
    model = extended(first_layer=None, target_modules=["mlp", "self_attn"])
    assert_refused(model, "safetensors", tmp_path, "names blocks by their layer")


@pytest.mark.parametrize("form", ["cut", "shift"])
@pytest.mark.parametrize(("reads", "over"), [("tokens", 1), ("tokens", 6), ("layer", 1)])
def test_thresholds_come_along(tmp_path: Path, reads: str, over: int, form: str) -> None:
    model = calibrated(extended(head_rank=6, gate_reads=reads), form, over=over)
    reference = record_reference(model)
    write_tensors(extract_parts(model), tmp_path, torch.float32)
    answer = compare_residues(tmp_path, reference.of_residues())
    assert answer["outputs"] < 1e-5 < 1e-2 < answer["largest"]
    thresholds = json.loads((tmp_path / "neutral_residues.json").read_text())["thresholds"]
    assert set(thresholds["values"]) == {"tokens": {"reader"}, "layer": {"1", "head"}}[reads]
    assert thresholds["promise"] == "Nothing gets worse."
    file = tmp_path / "neutral_residues.json"
    text = json.loads(file.read_text())
    text["thresholds"]["values"] = dict.fromkeys(thresholds["values"], 0.0)
    file.write_text(json.dumps(text))
    trained = compare_residues(tmp_path, reference.of_residues())
    assert trained["outputs"] > 1e-2, "they have an effect"
