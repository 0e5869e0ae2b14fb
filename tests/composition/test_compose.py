"""Several extensions in one folder: what is written loads, and what does not go together is
refused before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neutral_residues.calibration.saved import calibrate_saved
from neutral_residues.composition.compose import average, compose
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate_saved import windows_for
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.files import read_json, write_json
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress
from tiny_calibration import LOOSE
from tiny_run import UKRAINIAN_WORDS, make_text, method_values, run_values

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Runs of neutral residues on one backbone, with one seed, and one of LoRA."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    values = run_values(folder, steps=4, learning_rate=0.02) | {"output": str(folder / "french")}
    extend(make_run(values), progress=RunProgress(quiet=True))
    make_text(folder / "fr.jsonl", UKRAINIAN_WORDS, seed=3)
    values["output"] = str(folder / "ukrainian")
    extend(make_run(values), progress=RunProgress(quiet=True))
    lora = method_values(folder, "lora", steps=1)
    extend(make_run(lora), progress=RunProgress(quiet=True))
    return {name: folder / name for name in ("french", "ukrainian", "lora")}


@pytest.fixture
def folders(trained: Folders) -> Folders:
    return {name: trained[name] for name in ("french", "ukrainian")}


@pytest.fixture
def changed(folders: Folders, tmp_path: Path) -> Callable[..., Folders]:
    """Both, the second as an extension folder with other settings."""

    def change(**settings: Any) -> Folders:
        extension = folders["ukrainian"] / "extension"
        copy = Path(shutil.copytree(extension, tmp_path / "changed"))
        (copy / "SHA256SUMS").unlink()
        file = copy / "adapter_config.json"
        write_json(file, read_json(file, "adapter configuration") | settings)
        return folders | {"ukrainian": copy}

    return change


IDS = torch.randint(3, 250, (2, 24), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(saved: Saved) -> Tensor:
    return saved.model(input_ids=IDS.to(saved.device)).logits


@pytest.mark.parametrize("over", [None, 1, 8])
def test_together_each_is_as_it_was(folders: Folders, tmp_path: Path, over: int | None) -> None:
    compose(folders, tmp_path / "both", over=over)
    saved = load_saved(tmp_path / "both")
    assert saved.composition is not None
    assert (saved.composition.names, saved.composition.over) == (["french", "ukrainian"], over)
    assert saved.model.active_adapters == ["french", "ukrainian"]
    together = logits(saved)
    for name, folder in folders.items():
        saved.model.set_adapter(name)
        assert torch.equal(logits(saved), logits(load_saved(folder)))
        assert not torch.equal(logits(saved), together)


def test_what_is_written_can_be_checked(folders: Folders, tmp_path: Path) -> None:
    both = tmp_path / "both"
    compose(folders, both, over=8)
    files = {path.relative_to(both).as_posix() for path in both.rglob("*") if path.is_file()}
    assert {"composition.json", "SHA256SUMS", "README.md", "tokenizer.json"} <= files
    assert "french/adapter_model.safetensors" in files
    sums = (both / "SHA256SUMS").read_text()
    assert "ukrainian/adapter_config.json" in sums
    weights = both / "french" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"damaged: french.adapter_model\.safetensors is not as"):
        load_saved(both)


def test_how_they_are_used_is_part_of_what_tasks_are_kept_for(
    folders: Folders, tmp_path: Path
) -> None:
    keys = set()
    for over in (None, 1, 8):
        compose(folders, tmp_path / f"over {over}", over=over)
        keys.add(weights_key(tmp_path / f"over {over}", "backbone"))
    assert len(keys) == 3


def test_the_average_is_an_extension_like_any_other(folders: Folders, tmp_path: Path) -> None:
    average(folders, tmp_path / "mean")
    found, *two = (load_saved(it) for it in (tmp_path / "mean", *folders.values()))
    assert found.composition is None
    states = [dict(it.model.named_parameters()) for it in two]
    for name, parameter in found.model.named_parameters():
        torch.testing.assert_close(parameter, (states[0][name] + states[1][name]) / 2)
    assert not torch.equal(logits(found), logits(two[0]))


def refused(match: str, folders: Folders, output: Path, *, mean: bool = False, **how: Any) -> None:
    with pytest.raises(UserError, match=match):
        average(folders, output) if mean else compose(folders, output, **how)
    assert not output.exists()
    assert not list(output.parent.glob(".*.partial"))


def test_what_does_not_go_together(
    trained: Folders, folders: Folders, changed: Callable[..., Folders], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused("too few extensions; got french", {"french": folders["french"]}, out)
    lora = folders | {"lora": trained["lora"]}
    refused("lora is not an extension of neutral residues; got LORA", lora, out)
    refused("holds no extension", folders | {"other": tmp_path}, out)
    refused("name of an extension; got a/b", folders | {"a/b": folders["french"]}, out)
    refused("adapter name; got x", folders | {"x": folders["french"]}, out)
    refused("over; got 0; allowed: a number of tokens", folders, out, over=0)
    other = changed(base_model_name_or_path="another")
    refused("another backbone than .*: base_model_name_or_path; got another", other, out)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": {"hidden_size": 48}}, "another backbone than .*: hidden_size; got 48"),
        ({"new_tokens": 12}, "tokens of its own, and several extensions would share ids; got"),
        ({"modules_to_save": ["lm_head"]}, "changes modules of the backbone"),
        ({"gate_reads": "layer"}, "extension ukrainian: only gates that read the text can tell"),
    ],
)
def test_extensions_that_cannot_be_composed(
    changed: Callable[..., Folders], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    if "backbone" in settings:
        settings = {"backbone": {"hidden_size": 48, "num_layers": 2, "vocab_size": 260}}
    refused(message, changed(**settings), tmp_path / "out", over=8)


def test_what_has_no_average(
    folders: Folders, changed: Callable[..., Folders], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused("one shape: width of .*changed; got 4", changed(width=4), out, mean=True)
    again = Path(shutil.copytree(folders["ukrainian"], tmp_path / "again"))
    run = again / "run.yaml"
    run.write_text(run.read_text().replace("\nseed: 0", "\nseed: 1"))
    unlike = folders | {"ukrainian": again}
    refused("began with other weights; got seed 1; allowed: seed 0", unlike, out, mean=True)


def test_a_composition_is_not_calibrated(folders: Folders, tmp_path: Path) -> None:
    compose(folders, tmp_path / "both")
    saved = load_saved(tmp_path / "both")
    with pytest.raises(UserError, match="calibrate each extension, and compose them then"):
        calibrate_saved(saved, [], windows_for(saved, 16, 8), LOOSE, tokenising=lambda *_: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"names": ["french", "../ukrainian"]}, {"over": 0}, {"version": 2}, {"names": []}]
)
def test_a_composition_that_somebody_edited(
    folders: Folders, tmp_path: Path, changes: dict[str, Any]
) -> None:
    both = tmp_path / "both"
    compose(folders, both)
    (both / "SHA256SUMS").unlink()
    values = json.loads((both / "composition.json").read_text())
    del values["digest"]
    write_json(both / "composition.json", values | changes)
    with pytest.raises(UserError, match=r"composition"):
        load_saved(both)


def test_a_composition_with_an_adapter_of_another_backbone(
    folders: Folders, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    compose(folders, both)
    (both / "SHA256SUMS").unlink()
    file = both / "ukrainian" / "adapter_config.json"
    values = read_json(file, "adapter configuration")
    write_json(file, values | {"base_model_name_or_path": "somebody/else"})
    with pytest.raises(
        UserError, match=r"ukrainian extends another backbone than .*french; got som"
    ):
        load_saved(both)
