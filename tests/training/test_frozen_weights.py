"""Runs around a backbone held in fewer bits, and compiled runs."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from neutral_residues.cli.evaluate import evaluate_folder
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress
from neutral_residues.tuner.layer import residue_layers
from tiny_run import make_backbone, method_values, run_values


@pytest.fixture(autouse=True)
def backbone(tmp_path: Path) -> None:
    """Four bits come in blocks of 64 on a CPU."""
    run_values(tmp_path)
    shutil.rmtree(tmp_path / "backbone")
    make_backbone(tmp_path / "backbone", hidden_size=64, intermediate_size=128)


def run(folder: Path, **training: Any) -> Any:
    values = run_values(folder, learning_rate=0.01, **training)
    values["residues"] = {"local_loss_weight": 0.005}  # in so few steps the usual one closes gates
    return extend(make_run(values), progress=RunProgress(quiet=True))


def quiet() -> Console:
    return Console(file=io.StringIO())


@pytest.mark.parametrize("held", ["bfloat16", "int8", "nf4"])
def test_a_backbone_in_fewer_bits_learns_and_is_measured_as_it_trained(
    held: str, tmp_path: Path
) -> None:
    if held in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    record = run(tmp_path, steps=20, frozen_weights=held)
    fr = record.sets["fr"]
    assert fr.rise_percent < -3
    extension = RunFolder(tmp_path / "run").extension
    assert {t.dtype for t in load_file(extension / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    weight = next(
        iter(residue_layers(load_saved(tmp_path / "run").model).values())
    ).base_layer.gate_proj.weight
    assert weight.dtype == {"bfloat16": torch.float32, "int8": torch.int8, "nf4": torch.uint8}[held]
    again = evaluate_folder(tmp_path / "run", console=quiet())
    assert again.sets["fr"].backbone_nats == pytest.approx(fr.backbone_nats, rel=1e-5)
    assert again.sets["fr"].extended_nats == pytest.approx(fr.extended_nats, rel=1e-5)


def test_lora_works_around_four_bits_too(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    record = extend(
        make_run(method_values(tmp_path, "lora", frozen_weights="nf4")),
        progress=RunProgress(quiet=True),
    )
    assert record.cost.new_weights


def test_where_nothing_is_frozen_the_setting_is_refused(tmp_path: Path) -> None:
    values = method_values(tmp_path, "finetune", frozen_weights="nf4")
    with pytest.raises(
        UserError, match=r"frozen_weights has no effect on method finetune.*got nf4; remove it"
    ):
        extend(make_run(values), progress=RunProgress(quiet=True))


def test_without_the_package_that_quantises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"nf4 weights need the package bitsandbytes; pip install 'neutral"
    ):
        run(tmp_path, frozen_weights="nf4")


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # as torch
def test_a_compiled_run_is_the_same_run(tmp_path: Path) -> None:
    plain = run(tmp_path, steps=4)
    shutil.move(tmp_path / "run", tmp_path / "plain")
    compiled = run(tmp_path, steps=4, compile=True)
    for name, found in plain.sets.items():
        assert found.extended_nats == pytest.approx(compiled.sets[name].extended_nats, rel=1e-4)
