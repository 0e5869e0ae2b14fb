"""Atomic writing of files and folders, locks, and reading with one-line errors.

A file or folder appears under its final name only when it is complete: it is written under another
name in the same folder, flushed to disk, and then renamed.
"""

import errno
import glob
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import filelock

from neutral_residues.errors import UserError

PARTIAL_SUFFIX = ".partial"
MIN_FREE_BYTES = 2**20
"""A disk with less free space counts as full."""
MOST_BYTES = 64 * 2**20
"""Maximum size, after decompression, of files that are read as a whole: settings, results, tasks,
packed records."""
MOST_VALUES = 2_000_000
DEEPEST = 100
MOST_NUMBER = 10**30
SURROGATES = re.compile("[\ud800-\udfff]")


def default_cache_folder() -> Path:
    """The default folder for tokenised text: `neutral-residues` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neutral-residues"


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Context that turns errors of the disk (no space, no permission) into a one-line UserError
    that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refused = _refused_by_disk(error, path)
        if refused is None:
            raise
        raise as_user_error(refused, path) from error


def _refused_by_disk(error: Exception, path: Path | str) -> OSError | None:
    """The OSError behind `error`, or None. Libraries in Rust give only its number, in errors of
    their own; PyTorch reports a full disk as a RuntimeError about positions in the file."""
    if isinstance(error, OSError):
        return error
    if number := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    here = next((p for p in (Path(path), *Path(path).parents) if p.exists()), None)
    if isinstance(error, RuntimeError) and here and shutil.disk_usage(here).free < MIN_FREE_BYTES:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def as_user_error(error: OSError, path: Path | str) -> UserError:
    """A one-line UserError for an error of the operating system on `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        do = "free some space and run the same command again"
        return UserError(f"no space left on the disk of {path}", do=do)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        do = "choose another path or change its permissions"
        return UserError(f"no permission for {path}", do=do)
    if isinstance(error, FileNotFoundError):
        return UserError(f"no such file or folder: {path}", do="check the path")
    return UserError(f"cannot use {path}", got=error.strerror or str(error))


def check_is_file(path: Path, allowed: str = "a file") -> None:
    """Raise a UserError unless `path` is a regular file: pipes and devices may have no end."""
    with disk_errors(path):
        if path.is_dir():
            raise UserError(f"{path} is a folder", allowed=allowed, do="give one file")
        if not path.exists():
            raise UserError(f"no such file: {path}", allowed=allowed, do="check the path")
        if not path.is_file():
            do = "copy its output into a file"
            raise UserError(f"{path} is a pipe or a device", allowed=allowed, do=do)


def check_holds_files(folder: Path) -> None:
    """Raise a UserError if a folder that other libraries will read contains a pipe, a device or a
    broken link."""
    with disk_errors(folder):
        for path in sorted(folder.iterdir()):
            if not path.is_dir():
                check_is_file(path)


def read_whole(path: Path) -> bytes:
    """Read a file of settings or results. Raises a UserError if `path` is not a regular file, or is
    larger than `MOST_BYTES`."""
    check_is_file(path)
    with disk_errors(path), path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        allowed = f"up to {MOST_BYTES:,} bytes"
        raise UserError(f"{path} is too large for a file of its kind", allowed=allowed)
    return content


def read_text(path: Path) -> str:
    """Read a text file, with errors as in `read_whole`. Also raises a UserError if it is not
    UTF-8."""
    try:
        return read_whole(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        got = f"byte {error.start}"
        raise UserError(f"{path} is not UTF-8", got=got, do="save it as UTF-8") from error


def read_json(path: Path, what: str) -> Any:
    """Read the JSON file at `path`, which error messages call `what` ("record"). Raises a UserError
    if it cannot be read, is not valid JSON (NaN is not), or as `check_plain`."""
    content = read_whole(path)
    return parse_json(content, f"{what} {path}")


def parse_json(content: bytes, what: str) -> Any:
    """Parse JSON, with errors as in `read_json`; `what` names the file in error messages."""
    try:
        value = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        do = "if it was cut short while being copied, copy it again"
        raise UserError(f"{what} is not whole JSON", got=str(error), do=do) from error
    check_plain(value, what)
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def check_plain(value: Any, what: str, *, with_paths: bool = False) -> None:
    """Raise a UserError for values that JSON or YAML can express, but other code cannot use: half a
    surrogate pair, infinite or very large numbers, more than `MOST_VALUES` values (aliases in YAML
    can stand for many), or too deep nesting.

    Args:
        value: what was parsed.
        what: the beginning of the error message.
        with_paths: refuse NUL characters too, because texts may be paths.
    """
    waiting, number = [(value, 0)], 0
    while waiting:
        (item, depth), number = waiting.pop(), number + 1
        inside: Any = ()
        if isinstance(item, dict):
            inside = (*item, *item.values())
        elif isinstance(item, list | tuple | set):
            inside = item
        elif problem := _unusable(item, with_paths):
            raise UserError(f"{what} holds {problem}")
        waiting += ((it, depth + 1) for it in inside)
        if number + len(waiting) > MOST_VALUES or depth > DEEPEST:
            allowed = f"up to {MOST_VALUES:,}, {DEEPEST} within each other"
            raise UserError(f"{what} holds too many values", allowed=allowed)


def _unusable(item: Any, with_paths: bool) -> str | None:
    """What is wrong with a single value, or None."""
    if isinstance(item, str):
        if SURROGATES.search(item):
            return f"half a character: {item[:80]!r}"
        return f"a text with NUL: {item[:80]!r}" if with_paths and "\0" in item else None
    if isinstance(item, int) and abs(item) >= MOST_NUMBER:
        return f"a number of too many digits: about 2^{item.bit_length()}"
    return f"{item}" if isinstance(item, float) and not math.isfinite(item) else None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically; creates missing folders."""
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL_SUFFIX}"):
            if not _is_alive(leftover.name.split(".")[-2]):
                leftover.unlink(missing_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _is_alive(pid: str) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises a ValueError for NaN and infinity."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def locked(lock: Path, *, on_wait: Callable[[], None]) -> Iterator[None]:
    """Context in which this process holds the lock file `lock`; creates missing folders. The lock
    of a process that has died is released. If another process holds it, `on_wait` is called, which
    may raise, and then the lock is waited for."""
    held = filelock.FileLock(lock)
    with disk_errors(lock.parent):
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            on_wait()
            held.acquire()
    try:
        yield
    finally:
        held.release()  # the file stays: if it were deleted, two other processes could lock it


def flush_files(folder: Path) -> None:
    """Flush all files in `folder` and its subfolders to disk (fsync)."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Context that gives a temporary folder to fill. It is renamed to `path` at the end, where it
    replaces an older folder, or deleted after an exception."""
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    with disk_errors(path):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    try:
        with disk_errors(path):
            yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    with disk_errors(path):
        flush_files(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.replace(path)
