"""Only complete checkpoints count."""

from pathlib import Path

import pytest

from neutral_residues.errors import UserError
from neutral_residues.training.checkpoints import (
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


def test_the_newest_by_step_and_what_an_unfinished_save_left_is_removed(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    old, newest = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    leftover = checkpoint(tmp_path, 11, complete=False)
    assert complete_checkpoints(tmp_path) == [old, newest]
    assert last_checkpoint(tmp_path) == newest
    assert not leftover.exists()
    assert saved_sums(newest) == {"loss": {"nats": [10]}}


@pytest.mark.parametrize("left", [b"123", None])
def test_a_file_cut_short_or_lost_is_named(tmp_path: Path, left: bytes | None) -> None:
    file = checkpoint(tmp_path, 3) / "weights"
    file.unlink() if left is None else file.write_bytes(left)
    with pytest.raises(UserError, match=r"checkpoint-3 is damaged: weights; got . bytes; allowed"):
        last_checkpoint(tmp_path)
