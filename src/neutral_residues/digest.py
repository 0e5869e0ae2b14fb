"""Digests: damage is found where a file is read. No torch.

    short_hash(value)                              of what JSON can hold
    file_digest(path), known_digest(path)          of a file: SHA-256
    write_digests(folder), check_digests(folder)   of all files in a folder, in `SHA256SUMS`

`SHA256SUMS` is what `sha256sum -c SHA256SUMS` reads; its first line, a comment there, says the
version and how many files follow, so that a list cut short is noticed too. README.md and hidden
files are not in it: people and the Hub write those.

Measured on 1 GB (LAB.md, "what checking files costs"): SHA-256 takes 0.9 s of a core with SHA
instructions, half of BLAKE2b.
"""

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, write_text

logger = logging.getLogger(__name__)

DIGESTS = "SHA256SUMS"
NOT_COVERED = "README.md"

_FIRST_LINE = "# neutral-residues digests 1: {} files"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")

T = TypeVar("T")


class DamageError(UserError):
    """A file is not as it was saved; unlike one that the disk does not let us read."""


def short_hash(*parts: object) -> str:
    """32 hexadecimal digits that depend on every part, which JSON can hold, and its position."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """The same, computed once while the file's size and time of change stay as they are."""
    stat = path.stat()
    return _known_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, size_bytes: int, changed_ns: int) -> str:
    return file_digest(path)


# ---- folders ----


def write_digests(folder: Path) -> None:
    """Write the digests of all files in `folder`, subfolders included."""
    with disk_errors(folder):
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        names = sorted(path.as_posix() for path in paths if _is_covered(path))
        lines = [f"{file_digest(folder / name)}  {name}" for name in names]
    text = "\n".join([_FIRST_LINE.format(len(lines)), *lines]) + "\n"
    write_text(folder / DIGESTS, text)


def _is_covered(path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.parts)
    return not is_hidden and path.name not in (DIGESTS, NOT_COVERED)


def check_digests(folder: Path, *, required: bool = False, do: str | None = None) -> None:
    """Raise a DamageError that names the first file in `folder` that is not as it was saved, and
    another UserError where the disk does not let us read it.

    Args:
        required: whether a folder without digests is damaged too. Otherwise it is not checked:
            another program wrote it, or somebody changed it and deleted them.
        do: what to do with a damaged folder; default: save or fetch it again.
    """
    file = folder / DIGESTS
    if not required and not file.is_file():
        return
    do = do or f"save or fetch it again; if it was changed on purpose, delete {file}"
    with disk_errors(folder):
        wrong = _first_wrong(folder)
    if wrong is not None:
        raise DamageError(f"{folder} is damaged: {wrong}", do=do)


def _first_wrong(folder: Path) -> str | None:
    """What is wrong in the folder, in words."""
    if not (folder / DIGESTS).is_file():
        return f"{DIGESTS} is missing"
    listed = _listed((folder / DIGESTS).read_bytes())
    if listed is None:
        return f"{DIGESTS} is cut short or changed"
    for name, digest in listed.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_digest(folder / name) != digest:
            return f"{name} is not as it was saved"
    return None


def _listed(content: bytes) -> dict[str, str] | None:
    """Name -> digest, or None if this is not a whole list of files inside the folder."""
    first, *lines = content.decode("utf-8", errors="replace").split("\n")
    found = [match for line in lines if (match := _LINE.fullmatch(line))]
    listed = {match[2]: match[1] for match in found}
    paths = [PurePosixPath(name) for name in listed]
    is_inside = not any(path.is_absolute() or ".." in path.parts for path in paths)
    is_whole = lines[-1:] == [""] and len(listed) == len(lines) - 1
    is_whole = is_whole and first == _FIRST_LINE.format(len(listed))
    return listed if is_inside and is_whole else None


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Within the block files in `folder` may change; its digests, if it has them, are made anew.
    They are gone in between: a folder that was left half changed is not called damaged."""
    file = folder / DIGESTS
    has_digests = file.is_file()
    with disk_errors(file):
        file.unlink(missing_ok=True)
    yield
    if has_digests:
        write_digests(folder)


# ---- caches ----


def from_cache(path: Path, read: Callable[[], T]) -> T | None:
    """What `read` gives of the cache at `path`, or None where there is none, or it is damaged,
    which a warning says: it is to be made again."""
    if not path.exists():
        return None
    try:
        return read()
    except UserError as error:
        logger.warning("%s; it is made again", error.what)
        return None
