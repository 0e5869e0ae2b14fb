"""The documents of a corpus, one after another, whatever they are stored in.

    .txt        documents set off by one or more blank lines     also .gz, .zst
    .jsonl      one JSON object a line, the text in one field    also .gz, .zst
    .parquet    the text in one column
    dataset     what `datasets.load_dataset` streams, the text in one column

Promises: memory stays flat, whatever the size of the corpus. Bad input is one line that names the
corpus and the place (file, line, column). Empty documents, documents of white space only and nulls
are passed over; every other document is given as it is, except that in .txt files line ends become
"\\n" and a byte-order mark is dropped.

Does not: clean, filter, shuffle or deduplicate.
"""

import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from neutral_residues.config.run import Corpus
from neutral_residues.errors import UserError, first_line
from neutral_residues.files import as_user_error, disk_errors

if TYPE_CHECKING:
    from datasets import DatasetBuilder

FORMATS = (".txt", ".jsonl", ".parquet")
CODECS = {".gz": "gzip", ".zst": "zstd"}
ALLOWED_FILES = ".txt, .jsonl (both also as .gz or .zst), .parquet"

# A file without blank lines is one document to us, and a tokenizer needs a hundred times the memory
# of its text. For comparison: the Bible has 4 MB.
MAX_DOCUMENT_BYTES = 16 * 2**20
SURROGATES = re.compile("[\ud800-\udfff]")
READ_BYTES = 2**20
PARQUET_ROWS = 256


def iter_documents(corpus: Corpus) -> Iterator[str]:
    """The documents of `corpus` in their own order, at most `corpus.max_documents`; none is empty.

    Raises:
        UserError: on reaching what cannot be read: no such file, an unknown suffix, broken
            compression, a line that is not UTF-8 or not JSON, a missing field or column, a text
            that is not a string, an unknown dataset, no document at all.
    """
    num_documents = 0
    for text in _texts(corpus):
        if not text or text.isspace():
            continue
        yield text
        num_documents += 1
        if num_documents == corpus.max_documents:
            return
    if num_documents == 0:
        raise _error(corpus, f"no documents in {corpus.origin}", do="give a corpus with text in it")


def content_key(corpus: Corpus) -> str:
    """A short hash that is the same only if `iter_documents` gives the same documents.

    For a file, of its bytes and of the settings that change the documents; the corpus' name, role
    and path do not count. For a dataset, of its name, subset, split and what `datasets` calls its
    hash (the commit on the Hub, the time of change of local files).

    Raises:
        UserError: the file or dataset cannot be reached, or its suffix is unknown.
    """
    if corpus.path is None:
        builder = _dataset_builder(corpus)
        identity = [
            corpus.dataset,
            builder.config_id,
            str(builder.info.version),
            builder.hash,
            corpus.split,
        ]
    else:
        kind = _kind(corpus, corpus.path)
        with disk_errors(corpus.path):
            stat = corpus.path.stat()
            identity = [*kind, _file_digest(corpus.path.resolve(), stat.st_size, stat.st_mtime_ns)]
    return short_hash(*identity, corpus.field, corpus.max_documents)


def short_hash(*parts: object) -> str:
    """32 hexadecimal digits that depend on every part and on where it stands; parts are what JSON
    can hold."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, size_bytes: int, changed_ns: int) -> str:
    """Hash of the file's bytes. Size and time of change are there for the cache: they tell that it
    is another file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error(
    corpus: Corpus, what: str, *, got: object = None, allowed: str | None = None, do: str
) -> UserError:
    return UserError(f"corpus {corpus.name!r}: {what}", got=got, allowed=allowed, do=do)


def _kind(corpus: Corpus, path: Path) -> tuple[str, str | None]:
    """Format (one of FORMATS) and codec of a file, after checking that it is a file at all."""
    with disk_errors(path):
        is_folder, exists = path.is_dir(), path.exists()
    if is_folder:
        raise _error(corpus, f"{path} is a folder", allowed=ALLOWED_FILES, do="give one file")
    if not exists:
        raise _error(corpus, f"no such file: {path}", allowed=ALLOWED_FILES, do="check the path")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    codec = CODECS.get(suffixes[-1]) if suffixes else None
    form = "".join(suffixes[-2:-1]) if codec else "".join(suffixes[-1:])
    if form not in FORMATS or (codec and form == ".parquet"):
        got = path.name
        raise _error(
            corpus,
            "unknown kind of file",
            got=got,
            allowed=ALLOWED_FILES,
            do="convert or rename the file",
        )
    return form, codec


def _texts(corpus: Corpus) -> Iterator[str]:
    if corpus.path is None:
        yield from _dataset_texts(corpus)
        return
    form, codec = _kind(corpus, corpus.path)
    if form == ".parquet":
        yield from _parquet_texts(corpus, corpus.path)
        return
    with _open(corpus, corpus.path, codec) as file:
        lines = _lines(corpus, file)
        yield from _paragraphs(corpus, lines) if form == ".txt" else _json_texts(corpus, lines)


# ---- files of lines ----


@contextmanager
def _open(corpus: Corpus, path: Path, codec: str | None) -> Iterator[BinaryIO]:
    """The file's unpacked bytes. Arrow unpacks both codecs, joined streams too, and notices a file
    that was cut short."""
    import pyarrow

    try:
        with path.open("rb") as packed:
            if codec is None:
                yield packed
            else:
                stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(packed), codec)
                with io.BufferedReader(stream, READ_BYTES) as unpacked:
                    yield unpacked
    except OSError as error:
        if error.errno is not None:
            raise as_user_error(error, path) from error
        do = "copy or download the file again"
        raise _error(
            corpus,
            f"{path} is broken or cut short",
            got=str(error),
            allowed=f"a {codec} file",
            do=do,
        ) from error


def _lines(corpus: Corpus, file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and the lines. Only "\\n" ends a line: JSON strings may hold the other
    separators of Unicode."""
    number = 0
    while line := file.readline(MAX_DOCUMENT_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        _check_size(corpus, len(line), f"line {number}")
        try:
            yield number, line.decode("utf-8")
        except UnicodeDecodeError as error:
            got = f"byte 0x{line[error.start]:02x} at column {error.start + 1} of line {number}"
            raise _error(
                corpus, f"{corpus.origin} is not UTF-8", got=got, do="convert the file to UTF-8"
            ) from error


def _check_size(corpus: Corpus, num_bytes: int, where: str) -> None:
    if num_bytes > MAX_DOCUMENT_BYTES:
        limit = f"{MAX_DOCUMENT_BYTES:,} bytes"
        do = "cut the text into documents (in .txt: by a blank line; in .jsonl: one object a line)"
        raise _error(
            corpus,
            f"{corpus.origin}, {where}: a document over {limit}",
            allowed=f"up to {limit}",
            do=do,
        )


def _paragraphs(corpus: Corpus, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Runs of lines between blank ones; the run's last line end is not part of it."""
    run: list[str] = []
    run_bytes = 0
    for number, line in lines:
        if line.isspace():
            yield "".join(run).removesuffix("\n")
            run, run_bytes = [], 0
            continue
        run.append(line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line)
        run_bytes += len(line.encode())
        _check_size(corpus, run_bytes, f"before line {number}")
    yield "".join(run).removesuffix("\n")


def _json_texts(corpus: Corpus, lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    for number, line in lines:
        if line.isspace():
            continue
        where = f"{corpus.origin}, line {number}"
        try:
            row = json.loads(line)
        # ValueError also covers numbers that Python finds too long.
        except (ValueError, RecursionError) as error:
            reason = f"{error}: {line[:40]!r}"
            do = "mend or remove the line"
            raise _error(
                corpus, f"{where} is not JSON", got=reason, allowed="one object a line", do=do
            ) from error
        yield _text_of(corpus, row, where)


def _text_of(corpus: Corpus, row: Any, where: str) -> str:
    """The text in a row; a null counts as an empty document."""
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise _error(
            corpus,
            f"{where} is no object",
            got=kind,
            allowed="one object a line",
            do="mend or remove it",
        )
    if corpus.field not in row:
        names = ", ".join(map(str, row)) or "none"
        raise _error(
            corpus,
            f"{where} has no field {corpus.field!r}",
            got=f"fields {names}",
            do="set field to one of them",
        )
    text = row[corpus.field]
    if text is None:
        return ""
    if not isinstance(text, str):
        kind = type(text).__name__
        raise _error(
            corpus,
            f"{where}: field {corpus.field!r}",
            got=kind,
            allowed="a string",
            do="set field to the text",
        )
    # JSON can spell half a character ("\ud83d"), which no encoding and no tokenizer takes.
    if SURROGATES.search(text):
        raise _error(
            corpus,
            f"{where}: half of a surrogate pair in {corpus.field!r}",
            do="mend or remove the line",
        )
    _check_size(corpus, len(text), where)
    return text


# ---- tables ----


def _parquet_texts(corpus: Corpus, path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        # Without pre_buffer Arrow reads page by page instead of a whole row group, which may be the
        # whole file.
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as file:
            _check_column(corpus, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=[corpus.field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _text_of(corpus, {corpus.field: text}, f"{path}, row {number}")
    except UnicodeDecodeError as error:
        raise _error(
            corpus, f"{path} is not UTF-8", got=str(error), do="write the file anew"
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise as_user_error(error, path) from error
        do = "copy or download the file again"
        raise _error(
            corpus, f"{path} is broken or no parquet file", got=first_line(error), do=do
        ) from error


def _check_column(corpus: Corpus, columns: Sequence[str]) -> None:
    if corpus.field not in columns:
        names = f"columns {', '.join(columns)}"
        raise _error(
            corpus,
            f"{corpus.origin} has no column {corpus.field!r}",
            got=names,
            do="set field to one of them",
        )


def _dataset_builder(corpus: Corpus) -> "DatasetBuilder":
    import datasets

    with _dataset_errors(corpus):
        return datasets.load_dataset_builder(corpus.dataset, corpus.subset)


def _dataset_texts(corpus: Corpus) -> Iterator[str]:
    import datasets

    with _dataset_errors(corpus):
        table = datasets.load_dataset(
            corpus.dataset, corpus.subset, split=corpus.split, streaming=True
        )
    # The columns are not known of every dataset; where they are, the other ones (images!) need not
    # be read.
    if table.column_names is not None:
        _check_column(corpus, table.column_names)
        table = table.select_columns([corpus.field])
    rows = iter(table)
    number = 0
    while True:
        with _dataset_errors(corpus):
            row = next(rows, None)
        if row is None:
            return
        number += 1
        yield _text_of(corpus, row, f"{corpus.origin}, row {number}")


@contextmanager
def _dataset_errors(corpus: Corpus) -> Iterator[None]:
    """`datasets` fails in many ways (name, subset, split, network, permission) with as many types:
    all are one line here."""
    try:
        yield
    except Exception as error:
        do = "check dataset, subset and split, and that the Hub can be reached (or give a path)"
        raise _error(
            corpus, f"cannot read dataset {corpus.origin}", got=first_line(error), do=do
        ) from error
