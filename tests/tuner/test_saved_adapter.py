"""A saved adapter is data: it imports nothing, runs nothing, and is looked for nowhere else."""

import contextlib
import json
import os
import pickle
import resource
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from neutral_residues.errors import UserError
from neutral_residues.tuner.saved_adapter import CONFIG, WEIGHTS, adapter_config, load_adapter
from tiny_llama import extended_llama, logits, saved, tiny_llama


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = saved(extended_llama(), tmp_path / "adapter")
    change(folder, base_model_name_or_path="backbone")
    return folder


def change(folder: Path, **values: Any) -> None:
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_what_is_loaded_is_what_was_saved(folder: Path) -> None:
    assert torch.equal(logits(load_adapter(tiny_llama(), folder)), logits(extended_llama()))


def test_warnings_are_of_what_was_loaded(folder: Path) -> None:
    lora = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]))
    folder = saved(lora, folder.parent / "lora")
    change(folder, base_model_name_or_path="backbone", ensure_weight_tying=True)
    with pytest.warns(UserWarning, match="ensure_weight_tying"):
        load_adapter(tiny_llama(), folder)
    change(folder, r=3)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match="cannot load the adapter"):
            load_adapter(tiny_llama(), folder)
    assert not said


class MakesFolder:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made",)


def test_a_pickle_is_not_unpacked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    pickle.loads(pickle.dumps(MakesFolder()))
    assert Path("made").is_dir()
    Path("made").rmdir()
    (folder / WEIGHTS).rename("kept")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(MakesFolder()))
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors in .*; got no weights, or"):
        load_adapter(tiny_llama(), folder)
    Path("kept").rename(folder / WEIGHTS)
    (folder / WEIGHTS).write_bytes(pickle.dumps(MakesFolder()))
    with pytest.raises(UserError, match="cannot load the adapter"):
        load_adapter(tiny_llama(), folder)
    assert not Path("made").exists()


HOSTILE: dict[str, dict[str, Any]] = {
    "another library's class": {
        "auto_mapping": {"base_model_class": "ROW", "parent_library": "canary"},
        "task_type": None,
    },
    "megatron": {"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "canary"},
    "code from the Hub": {"trust_remote_code": True},
    "a tokenizer's code": {
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "x",
        "tokenizer_name_or_path": ".",
        "tokenizer_kwargs": {"trust_remote_code": True},
        "num_virtual_tokens": 2,
    },
    "other adapters": {"peft_type": "XLORA", "adapters": {"0": "nobody/nothing"}},
    "no such type": {"peft_type": "canary"},
    "a type that is none": {"peft_type": ["canary"]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_no_name_in_a_configuration_is_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.syspath_prepend("")
    for name in ("canary.py", "modeling.py"):
        Path(name).write_text("open('made', 'w').close()\nROW = None\n")
    Path("tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["modeling.T", None]}})
    )
    file = folder / CONFIG
    kept = {} if "peft_type" in HOSTILE[case] else json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"base_model_name_or_path": "x"} | HOSTILE[case]))
    with contextlib.suppress(UserError):
        load_adapter(tiny_llama(), folder)
    assert not Path("made").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_gates": "relu"}, r"cannot read .*Unexpected keyword arguments \['block_gates'\]"),
        ({"block_gate": {}}, "block_gate"),
        ({"width": "8"}, "width"),
        ({"base_model_name_or_path": None}, "base_model_name_or_path in"),
        ({"target_modules": 5}, "cannot load the adapter"),
    ],
)
def test_settings_that_are_wrong_or_unknown(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    change(folder, **values)
    with pytest.raises(UserError, match=message):
        load_adapter(tiny_llama(), folder)


def test_tensors_of_another_type(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file({name: it.bfloat16() for name, it in tensors.items()}, folder / WEIGHTS)
    assert logits(load_adapter(tiny_llama(), folder)).isfinite().all()
    save_file({name: it.view(torch.int32) for name, it in tensors.items()}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"type of base_model.*; got I32; allowed: F64, F32"):
        load_adapter(tiny_llama(), folder)


def test_a_size_without_weights_fills_no_memory(folder: Path) -> None:
    change(folder, width=10**8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"shape of .*; got \(8, 32\); allowed: \(100000000, 32\)"):
        load_adapter(tiny_llama(), folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # in KiB


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json"])
def test_what_is_no_file_is_not_read(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name} is a pipe or a device"):
        adapter_config(folder)
