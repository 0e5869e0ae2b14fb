"""Nothing is ever half there, whatever goes wrong in between, and nothing endless is read."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from neutral_residues import files
from neutral_residues.errors import UserError
from neutral_residues.files import (
    as_user_error,
    check_plain,
    disk_errors,
    locked,
    read_whole,
    whole_folder,
    write_json,
    write_text,
)


def test_a_text_appears_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "déjà")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "déjà"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new" / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert os.listdir(tmp_path / "new") == ["a.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"value": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"value": float("nan")})
    assert (tmp_path / "a.json").read_text() == '{\n  "value": 1\n}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_what_a_killed_process_left_is_removed_by_the_next_that_writes(tmp_path: Path) -> None:
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (tmp_path / f".a.txt.{killed.pid}.partial").write_text("ha")
    writing = tmp_path / f".a.txt.{os.getppid()}.partial"
    writing.write_text("ha")
    write_text(tmp_path / "a.txt", "half")
    assert sorted(tmp_path.iterdir()) == [writing, tmp_path / "a.txt"]


@pytest.mark.parametrize(
    "said",
    [
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 34048 vs 33940",
    ],
)
def test_a_full_disk_as_libraries_report_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Safetensors passes the number on; PyTorch's message is believed where the disk is full."""
    full = shutil._ntuple_diskusage(100, 100, 0)  # type: ignore[attr-defined]

    def save() -> None:
        with disk_errors(tmp_path / "new" / "weights"):
            raise RuntimeError(said)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: full)
        with pytest.raises(UserError, match=r"no space left on the disk of .*weights; free some"):
            save()
    if "os error" not in said:
        with pytest.raises(RuntimeError, match="unexpected pos"):
            save()


def test_a_folder_is_replaced_only_when_the_new_one_is_whole(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as partial:
        (partial / "one").write_text("1")
    with pytest.raises(RuntimeError):
        _fail_within(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["one"]
    with whole_folder(tmp_path / "out") as partial:
        (partial / "three").write_text("3")
    assert os.listdir(tmp_path / "out") == ["three"]


def _fail_within(folder: Path) -> None:
    with whole_folder(folder) as partial:
        (partial / "two").write_text("2")
        raise RuntimeError


def test_one_at_a_time_behind_a_lock(tmp_path: Path) -> None:
    lock, order = tmp_path / "new" / ".lock", []

    def waits() -> None:
        with locked(lock, on_wait=lambda: order.append("waits")):
            order.append("second")

    with locked(lock, on_wait=lambda: pytest.fail("nobody holds it")):
        thread = threading.Thread(target=waits)
        thread.start()
        while not order:
            thread.join(0.01)
        order.append("first")
    thread.join()
    assert order == ["waits", "first", "second"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on the disk of /x"),
        (errno.EACCES, "no permission for /x"),
        (errno.EROFS, "no permission for /x"),
        (errno.ENOENT, "no such file or folder: /x"),
        (errno.EIO, "cannot use /x"),
    ],
)
def test_what_a_disk_refuses_is_one_line(number: int, words: str) -> None:
    error = as_user_error(OSError(number, os.strerror(number)), "/x")
    assert isinstance(error, UserError)
    assert words in str(error)
    assert "\n" not in str(error)


def test_only_files_of_a_disk_are_read_whole(tmp_path: Path, monkeypatch: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "large").write_bytes(b"x" * 11)
    monkeypatch.setattr(files, "MOST_BYTES", 10)
    wrong = {
        "pipe": "is a pipe or a device",
        "zero": "is a pipe or a device",
        "circle": "no such file",
        "none": "no such file",
        ".": "is a folder",
        "large": "is too large",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError, match=message):
            read_whole(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": ["x\0"]}, "file holds a text with NUL: 'x.x00'"),
        ({"\ud800": 1}, "holds half a character"),
        ([float("-inf")], "file holds -inf"),
        ([-(10**400)], "holds a number of too many digits: about 2.1329"),
    ],
)
def test_values_that_no_program_takes(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_plain(value, "file", with_paths=True)


def test_values_that_stand_for_many() -> None:
    many: Any = ["lol"]
    for _ in range(10):
        many = [many] * 10
    endless: Any = []
    endless.append(endless)
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    for value in (many, endless, deep):
        with pytest.raises(UserError, match="holds too many values"):
            check_plain(value, "file")
