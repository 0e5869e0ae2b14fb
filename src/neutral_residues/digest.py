"""Digests of values, files and folders, with which damaged files are noticed when they are read. No
torch.

    short_hash(value)                              of values that JSON can represent
    file_digest(path), known_digest(path)          of a file: SHA-256
    write_digests(folder), check_digests(folder)   of all files in a folder, in `SHA256SUMS`

`SHA256SUMS` has the format of `sha256sum -c SHA256SUMS`. Its first line, a comment, contains a
version and the number of files, so that a truncated list is noticed too. README.md and hidden files
are not listed, because users and the Hub change them.

On 1 GB, SHA-256 takes 0.9 s on a core with SHA instructions, half as long as BLAKE2b (LAB.md, "what
checking files costs").
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
    """A file has changed since it was saved, or is missing. Files that cannot be read raise another
    UserError."""


def short_hash(*parts: object) -> str:
    """32 hexadecimal digits that depend on all `parts` and their order; JSON must be able to
    represent them."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of the contents of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: Path) -> str:
    """`file_digest`, cached while size and modification time of the file do not change."""
    stat = path.stat()
    return _known_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, size_bytes: int, changed_ns: int) -> str:
    return file_digest(path)


# ---- folders ----


def write_digests(folder: Path) -> None:
    """Write `SHA256SUMS` for all files in `folder` and its subfolders."""
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
    """Check the files in `folder` against its `SHA256SUMS`.

    Args:
        required: treat a folder without digests as damaged. By default it is not checked: another
            program may have written it, or a user may have changed it and deleted the digests.
        do: advice in the error message; default: save or fetch the folder again.

    Raises:
        DamageError: for the first file that has changed or is missing.
        UserError: if a file cannot be read.
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
    """Describe the first error in the folder; None if there is none."""
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
    """File name -> digest, from the contents of `SHA256SUMS`; None if these are not complete, or
    name files outside the folder."""
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
    """Context in which files in `folder` may change. If the folder has digests, they are deleted at
    the beginning, so that an interrupted change does not count as damage, and written again at the
    end."""
    file = folder / DIGESTS
    has_digests = file.is_file()
    with disk_errors(file):
        file.unlink(missing_ok=True)
    yield
    if has_digests:
        write_digests(folder)


# ---- caches ----


def from_cache(path: Path, read: Callable[[], T]) -> T | None:
    """The result of `read()`, which reads the cached file or folder at `path`; None if it does not
    exist or is damaged (with a warning), so that the caller makes it again."""
    if not path.exists():
        return None
    try:
        return read()
    except UserError as error:
        logger.warning("%s; it is made again", error.what)
        return None
