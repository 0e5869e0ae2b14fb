"""Digests notice every flipped byte of a tensor, and nothing that changes no tensor."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neutral_residues.errors import UserError
from neutral_residues.results.digest import check_digest, write_digest

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    write_digest(tmp_path)
    check_digest(tmp_path)
    return tmp_path


def test_flipped_bytes_are_noticed(folder: Path) -> None:
    file = folder / "model.safetensors"
    saved = file.read_bytes()
    data = 8 + int.from_bytes(saved[:8], "little")
    for position in random.Random(0).sample(range(data, len(saved)), 10):
        damaged = bytearray(saved)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"damaged; got 1 tensors that differ .* first [ab];"):
            check_digest(folder)


def test_other_shapes_types_and_missing_tensors_are_noticed(folder: Path) -> None:
    changed = (
        TENSORS | {"a": TENSORS["a"].view(3, 2)},
        TENSORS | {"b": TENSORS["b"].half()},
        {"a": TENSORS["a"]},
        TENSORS | {"c": torch.ones(1)},
    )
    for tensors in changed:
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(UserError, match="damaged"):
            check_digest(folder)
    (folder / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match="unreadable"):
        check_digest(folder)


def test_how_tensors_are_stored_does_not_matter(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name, tensor in TENSORS.items():
        save_file({name: tensor}, folder / f"part-{name}.safetensors", metadata={"by": "another"})
    check_digest(folder)


def test_a_folder_without_digest_is_not_checked(folder: Path) -> None:
    (folder / "digest.json").unlink()
    save_file({"x": torch.ones(1)}, folder / "model.safetensors")
    check_digest(folder)


def test_a_damaged_digest_is_one_line(folder: Path) -> None:
    (folder / "digest.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="damaged"):
        check_digest(folder)
