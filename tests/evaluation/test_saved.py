"""Saved extensions: what cannot be loaded is one line that says why."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from damage import damages
from neutral_residues.backbone import load_backbone
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress
from tiny_run import method_values, run_values


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of neutral residues and one of full fine-tuning."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    for values in (run_values(folder, steps=1), method_values(folder, "finetune", steps=1)):
        extend(make_run(values), progress=RunProgress(quiet=True))
    return folder


@pytest.fixture
def extension(trained: Path, tmp_path: Path) -> Path:
    """One as other tools save it, without digests."""
    copy = Path(shutil.copytree(trained / "run" / "extension", tmp_path / "extension"))
    (copy / "SHA256SUMS").unlink()
    return copy


@pytest.mark.parametrize("missing", [None, 3, "", ["x"], "absent"])
def test_an_adapter_that_does_not_name_its_backbone(extension: Path, missing: Any) -> None:
    file = extension / "adapter_config.json"
    values = json.loads(file.read_text())
    if missing == "absent":
        del values["base_model_name_or_path"]
    else:
        values["base_model_name_or_path"] = missing
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"base_model_name_or_path in .*adapter_config\.json; got"):
        load_saved(extension)


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"peft_type": "NO_SUCH"}', "{}"])
def test_an_adapter_config_that_is_none(extension: Path, content: str) -> None:
    (extension / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        load_saved(extension)


@pytest.mark.parametrize(
    ("run", "file"),
    [
        ("run", "adapter_model.safetensors"),
        ("run", "adapter_config.json"),
        ("run", "tokenizer.json"),
        ("finetune", "model.safetensors"),
        ("finetune", "config.json"),
    ],
)
def test_damage_is_noticed(trained: Path, run: str, file: str) -> None:
    load_saved(trained / run)
    for _ in damages(trained / run / "extension" / file, flips=4):
        with pytest.raises(UserError, match=rf"{run}.extension is damaged: {file} is "):
            load_saved(trained / run)


def test_an_extension_cannot_ask_for_code(
    extension: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its backbone is a folder with code of its own, which would make a file."""
    monkeypatch.chdir(tmp_path)
    file = extension / "adapter_config.json"
    values = json.loads(file.read_text())
    backbone = Path(shutil.copytree(values["base_model_name_or_path"], tmp_path / "backbone"))
    (backbone / "modeling.py").write_text("open('made', 'w').close()\n")
    code = {"AutoConfig": "modeling.C", "AutoModelForCausalLM": "modeling.M"}
    config = json.loads((backbone / "config.json").read_text())
    changes = {"auto_map": code, "model_type": "none of Transformers'", "trust_remote_code": True}
    (backbone / "config.json").write_text(json.dumps(config | changes))
    named = {"base_model_name_or_path": str(backbone), "trust_remote_code": True}
    for settings in (named, {"base_model_name_or_path": str(backbone)}):
        file.write_text(json.dumps(values | settings))
        with pytest.raises(UserError):
            load_saved(extension)
    assert not (tmp_path / "made").exists()


def test_an_extension_saved_by_other_tools_loads(extension: Path) -> None:
    loaded = load_saved(extension)
    assert loaded.config is None
    assert loaded.reference is None


def test_the_backbone_is_of_the_revision_that_was_extended(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backbone is a folder, which takes any revision."""
    values = run_values(trained, steps=1) | {"revision": "v2", "output": str(tmp_path / "run")}
    extend(make_run(values), progress=RunProgress(quiet=True))
    extension = tmp_path / "run" / "extension"
    assert json.loads((extension / "adapter_config.json").read_text())["revision"] == "v2"
    asked = []

    def loaded(name: str, *, revision: str | None = None, **options: Any) -> Any:
        asked.append(revision)
        return load_backbone(name, revision=revision, **options)

    monkeypatch.setattr("neutral_residues.evaluation.saved.load_backbone", loaded)
    assert load_saved(extension).revision == "v2"
    assert load_saved(tmp_path / "run").revision == "v2"
    assert asked == ["v2", "v2"]
