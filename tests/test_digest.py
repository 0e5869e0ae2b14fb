"""Digests notice whatever happens to a file, and nothing that is no damage."""

import shutil
import subprocess
from pathlib import Path

import pytest

from damage import damages
from neutral_residues.digest import (
    DIGESTS,
    changing,
    check_digests,
    from_cache,
    short_hash,
    write_digests,
)
from neutral_residues.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "extension"
    (folder / "train").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    (folder / "train" / "tokens.bin").write_bytes(b"12345")
    (folder / "empty.bin").write_bytes(b"")
    write_digests(folder)
    check_digests(folder, required=True)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "train/tokens.bin"])
def test_a_damaged_file_is_named_in_one_line(folder: Path, name: str) -> None:
    for damage in damages(folder / name):
        wrong = "missing" if "gone" in damage else "not as it was saved"
        with pytest.raises(UserError, match=f"extension is damaged: {name} is {wrong}; save") as e:
            check_digests(folder)
        assert "\n" not in str(e.value), damage
    check_digests(folder, required=True)


def test_damaged_digests_are_noticed(folder: Path) -> None:
    for _ in damages(folder / DIGESTS, flips=40):
        with pytest.raises(UserError, match="extension is damaged: "):
            check_digests(folder, required=True)
    for old, new in (("digests 1", "digests 2"), ("model", "../model"), ("model", "/dev/zero")):
        text = (folder / DIGESTS).read_text()
        (folder / DIGESTS).write_text(text.replace(old, new))
        with pytest.raises(UserError, match="SHA256SUMS is cut short or changed"):
            check_digests(folder)
        (folder / DIGESTS).write_text(text)


def test_lines_cut_from_the_end_are_noticed(folder: Path) -> None:
    lines = (folder / DIGESTS).read_text().splitlines(keepends=True)
    (folder / DIGESTS).write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="cut short"):
        check_digests(folder)


def test_what_is_no_damage(folder: Path) -> None:
    (folder / "README.md").write_text("a card")
    (folder / ".gitattributes").write_text("from the Hub")
    (folder / "picture.png").write_bytes(b"of mine")
    check_digests(folder, required=True)
    write_digests(folder)
    assert "README" not in (folder / DIGESTS).read_text()
    assert "git" not in (folder / DIGESTS).read_text()


def test_a_folder_without_digests_is_not_checked_unless_it_must_have_them(folder: Path) -> None:
    (folder / DIGESTS).unlink()
    check_digests(folder)
    with pytest.raises(UserError, match=r"extension is damaged: SHA256SUMS is missing; make"):
        check_digests(folder, required=True, do="make it again")


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_agrees(folder: Path) -> None:
    command = ["sha256sum", "-c", "--strict", DIGESTS]
    assert subprocess.run(command, cwd=folder, check=False).returncode == 0
    (folder / "model.safetensors").write_bytes(b"other")
    assert subprocess.run(command, cwd=folder, check=False).returncode == 1


def test_files_can_be_changed_on_purpose(folder: Path) -> None:
    with changing(folder):
        (folder / "empty.bin").write_bytes(b"no more")
        check_digests(folder)
    check_digests(folder, required=True)
    (folder / DIGESTS).unlink()
    with changing(folder):
        pass
    assert not (folder / DIGESTS).exists()


def test_a_cache_heals_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def read() -> str:
        check_digests(folder, required=True)
        return "read"

    assert from_cache(folder, read) == "read"
    assert from_cache(folder / "none", read) is None
    assert not caplog.messages
    (folder / "empty.bin").unlink()
    assert from_cache(folder, read) is None
    assert caplog.messages == [f"{folder} is damaged: empty.bin is missing; it is made again"]


def test_a_hash_depends_on_every_part_and_its_position() -> None:
    assert len({short_hash(1, "a"), short_hash("a", 1), short_hash("1", "a"), short_hash(1)}) == 4
