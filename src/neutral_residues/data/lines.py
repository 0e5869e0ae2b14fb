"""Reads lines of plain or compressed files, and JSON in them.

Promises: memory stays flat, however large a file is unpacked, because a line has at most
`MOST_BYTES`. Errors are one line that names the place: a damaged or truncated compressed file, a
line that is not UTF-8 or not JSON.
"""

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from neutral_residues.errors import UserError, first_line
from neutral_residues.files import as_user_error, check_is_file

CODECS = {".gz": "gzip", ".zst": "zstd"}
FIX_LINE = "fix or remove this line"

# A file without empty lines is one document here, and a tokenizer needs a hundred times the memory
# of its text. For comparison: the Bible has 4 MB.
MOST_BYTES = 16 * 2**20
READ_BYTES = 2**20

Line = tuple[str, str]
"""Its place, for messages, and its text with the line end."""


def codec_of(path: Path) -> str | None:
    """The compression of a file, from its suffix; None without."""
    return CODECS.get(path.suffix.lower())


def iter_lines(path: Path, *, at_most: int | None = None) -> Iterator[Line]:
    """The lines of a file; a UserError when one cannot be read, and for more than `at_most` bytes,
    unpacked (for callers that keep all lines)."""
    with _unpacked(path) as file:
        number = num_bytes = 0
        # Only "\n" ends a line: JSON strings may hold the other separators of Unicode.
        while line := file.readline(MOST_BYTES + 1):
            number, num_bytes = number + 1, num_bytes + len(line)
            if at_most is not None and num_bytes > at_most:
                allowed = f"up to {at_most:,} bytes, unpacked"
                raise UserError(f"{path} is too large for a file of its kind", allowed=allowed)
            where = f"{path}, line {number}"
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            check_size(len(line), where)
            try:
                yield where, line.decode("utf-8")
            except UnicodeDecodeError as error:
                got = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
                do = "convert the file to UTF-8"
                raise UserError(f"{where}: not UTF-8", got=got, do=do) from error


def iter_objects(lines: Iterable[Line]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place and the JSON object of each line; empty lines are skipped."""
    for where, line in lines:
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        # ValueError also covers numbers that Python finds too long.
        except (ValueError, RecursionError) as error:
            what, got = f"{where}: not JSON", f"{error}: {line[:40]!r}"
            raise UserError(what, got=got, allowed="one object per line", do=FIX_LINE) from error
        if not isinstance(row, dict):
            raise UserError(f"{where}: not an object", got=type(row).__name__, do=FIX_LINE)
        yield where, row


def check_size(num_bytes: int, where: str) -> None:
    """Raise a UserError for a document that is too large."""
    if num_bytes > MOST_BYTES:
        do = "split the text into documents (.txt: by an empty line; .jsonl: one object per line)"
        raise UserError(f"{where}: a document of over {MOST_BYTES:,} bytes", do=do)


@contextmanager
def broken_file(path: Path, allowed: str) -> Iterator[None]:
    """Turns errors of Arrow (a damaged file) and of the disk into one line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise as_user_error(error, path) from error
        do = "copy or download the file again"
        what = f"{path} is broken or cut short"
        raise UserError(what, got=first_line(error), allowed=allowed, do=do) from error


@contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """The file's unpacked bytes. Arrow reads both codecs and concatenated streams, and notices a
    truncated file."""
    import pyarrow

    check_is_file(path)
    codec = codec_of(path)
    with broken_file(path, f"a {codec} file"), path.open("rb") as packed:
        if codec is None:
            yield packed
        else:
            stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed), codec)
            with io.BufferedReader(stream, READ_BYTES) as unpacked:
                yield unpacked
