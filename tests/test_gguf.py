"""A GGUF file as backbone, and what can be wrong with one."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from neutral_residues.backbone import load_backbone, load_config, load_tokenizer
from neutral_residues.errors import UserError
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.run import extend
from tiny_gguf import write_gguf
from tiny_llama import logits, tiny_llama
from tiny_run import run_values


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    write_gguf(tiny_llama(tie_word_embeddings=True), tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def load_all(file: Path) -> Any:
    """As a run does, in its order."""
    load_config(str(file))
    load_tokenizer(str(file))
    return load_backbone(str(file), dtype=torch.float32)


def test_its_weights_are_those_of_the_model_and_can_be_saved(gguf: Path, tmp_path: Path) -> None:
    model = load_all(gguf).eval()
    torch.testing.assert_close(logits(model), logits(tiny_llama(tie_word_embeddings=True)))
    assert model.name_or_path == str(gguf)
    model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("method", ["neutral", "finetune"])
def test_a_run_extends_it_and_finds_it_again(method: str, gguf: Path, tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=2) | {"model": str(gguf), "method": method, "budget": 0.5}
    record = extend(**values)
    saved = load_saved(tmp_path / "run")
    assert saved.backbone_name == str(gguf)
    assert saved.config is not None
    assert record.sets["fr"].backbone_bits_per_byte > 0


def test_what_is_wrong_is_one_line(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no such file: .*absent.gguf; check the path"):
        load_all(tmp_path / "absent.gguf")
    cut = tmp_path / "cut.gguf"
    for length in (40, gguf.stat().st_size // 2):
        cut.write_bytes(gguf.read_bytes()[:length])
        with pytest.raises(UserError, match=r"cannot load .*cut.gguf"):
            load_all(cut)
    cut.write_text("no model at all")
    with pytest.raises(UserError, match=r"cannot load .*cut.gguf"):
        load_all(cut)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package gguf; pip install gguf"):
        load_all(gguf)
