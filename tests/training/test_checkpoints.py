"""Only complete checkpoints count."""

import errno
import shutil
from pathlib import Path

import pytest

from damage import damages
from neutral_residues import digest
from neutral_residues.errors import UserError
from neutral_residues.training.checkpoints import (
    SUMS,
    complete_checkpoints,
    last_checkpoint,
    mark_complete,
    saved_sums,
)


def checkpoint(folder: Path, step: int, *, complete: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights").write_bytes(b"12345")
    if complete:
        mark_complete(path, sums={"loss": {"nats": [step]}})
    return path


def refuse(said: str) -> None:
    pytest.fail(said)


def test_the_newest_by_step_and_what_an_unfinished_save_left_is_removed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path, on_damaged=refuse) is None
    old, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    leftover = checkpoint(tmp_path, 11, complete=False)
    assert complete_checkpoints(tmp_path) == [old, newest]
    assert last_checkpoint(tmp_path, on_damaged=refuse) == newest
    assert not leftover.exists()
    assert saved_sums(newest) == {"loss": {"nats": [10]}}


@pytest.mark.parametrize("name", ["weights", SUMS])
def test_the_one_before_a_damaged_one(tmp_path: Path, name: str) -> None:
    old, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    kept = Path(shutil.copytree(newest, tmp_path / "kept"))
    for _ in damages(newest / name):
        said: list[str] = []
        assert last_checkpoint(tmp_path, on_damaged=said.append) == old
        (line,) = said
        assert line.startswith(f"{newest} is damaged: {name} is ")
        assert not newest.exists()
        shutil.copytree(kept, newest)
    assert last_checkpoint(tmp_path, on_damaged=refuse) == newest


def test_only_damaged_ones_are_an_error_and_stay(tmp_path: Path) -> None:
    for step in (9, 10):
        (checkpoint(tmp_path, step) / "weights").unlink()
    message = rf"checkpoint-10 is damaged: weights is missing; .* delete {tmp_path} to train"
    with pytest.raises(UserError, match=message):
        last_checkpoint(tmp_path, on_damaged=refuse)
    assert len(complete_checkpoints(tmp_path)) == 2


def test_a_disk_that_fails_is_no_damaged_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    both = [checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)]
    monkeypatch.setattr(digest, "file_digest", fail)
    with pytest.raises(UserError, match=r"cannot use .*checkpoint-10; got Input/output error"):
        last_checkpoint(tmp_path, on_damaged=refuse)
    assert complete_checkpoints(tmp_path) == both
