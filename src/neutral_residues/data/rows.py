"""Reads the rows of a corpus and the values of their fields, whatever the format.

    .jsonl      one JSON object per line                      also .gz, .zst
    .tsv        columns between tabs, without quotes          also .gz, .zst
    .parquet    columns
    dataset     what `datasets.load_dataset` streams

A field may lie within another: translation.fr. The columns of a .tsv are named by its first line,
or, where all fields that are asked for are numbers (1, 2), counted, and the first line is a row.

Promises: memory stays flat, whatever the size of the corpus. Errors are one line that names the
place.

Files are read here and not by `datasets`, which could: its errors do not say which line of a file
they are about, and .zst needs one more package there.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neutral_residues.config.data import Corpus
from neutral_residues.data.lines import (
    FIX_LINE,
    READ_BYTES,
    broken_file,
    check_size,
    codec_of,
    iter_lines,
    iter_objects,
)
from neutral_residues.errors import UserError, first_line
from neutral_residues.files import check_is_file

FORMATS = (".txt", ".jsonl", ".tsv", ".parquet")
ALLOWED_FILES = ".txt, .jsonl, .tsv (these also as .gz or .zst), .parquet"
PARQUET_ROWS = 16
"""Rows that are read at once: a file may store a text only once that all rows contain."""
MOST_NAMES = 200
"""Characters of the names of fields in a message."""

Value = tuple[Any, str]
"""The value of a field, and its place, for messages."""
Row = tuple[Value, ...]


def kind_of(path: Path) -> tuple[str, str | None]:
    """Format (one of FORMATS) and codec of a file, after checking that it is a file at all."""
    check_is_file(path, ALLOWED_FILES)
    suffixes, codec = [suffix.lower() for suffix in path.suffixes] or [""], codec_of(path)
    form = "".join(suffixes[-2:-1]) if codec else suffixes[-1]
    if form not in FORMATS or (codec and form == ".parquet"):
        do = "convert or rename the file"
        raise UserError("unknown kind of file", got=path.name, allowed=ALLOWED_FILES, do=do)
    return form, codec


def iter_rows(corpus: Corpus, fields: Sequence[str]) -> Generator[Row, None, None]:
    """The values of these fields in every row, of any type; a UserError when one cannot be read,
    and for a .txt file, which has no rows."""
    if corpus.path is None:
        yield from _dataset_rows(corpus, fields)
        return
    form, _ = kind_of(corpus.path)
    if form == ".parquet":
        yield from _parquet_rows(corpus.path, fields)
    elif form == ".tsv":
        yield from _tsv_rows(corpus.path, fields)
    elif form == ".jsonl":
        yield from _json_rows(corpus.path, fields)
    else:
        allowed = ".jsonl, .tsv or .parquet"
        raise UserError(f"{corpus.path} holds no {corpus.kind}", allowed=allowed, do="convert it")


def iter_line_pairs(one: Path, other: Path) -> Generator[Row, None, None]:
    """The lines of two files in pairs; a UserError if one file has more."""
    both = itertools.zip_longest(iter_lines(one), iter_lines(other))
    for number, (first, second) in enumerate(both):
        if first is None or second is None:
            what = f"{one} and {other} have different numbers of lines"
            got = f"{one if first is None else other} ends after {number:,}"
            raise UserError(what, got=got, do="give files whose lines belong together")
        yield tuple((_without_end(line), where) for where, line in (first, second))


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _json_rows(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    for where, row in iter_objects(iter_lines(path)):
        yield tuple((_at(row, it, where, "field"), f"{where}, field {it!r}") for it in fields)


def _at(row: Mapping[str, Any], field: str, where: str, kind: str) -> Any:
    """The value of a field, possibly nested; a UserError if it is missing."""
    if field in row:
        return row[field]
    outer, dot, inner = field.partition(".")
    if dot and isinstance(within := row.get(outer), dict):
        return _at(within, inner, f"{where}, {kind} {outer!r}", kind)
    raise _no_field(field, row, where, kind)


def _no_field(field: str, there: Iterable[str], where: object, kind: str) -> UserError:
    got = f"{kind}s {', '.join(there) or 'none'}"[:MOST_NAMES]
    return UserError(f"{where}: no {kind} {field!r}", got=got, do="choose one of them")


# ---- tables ----


def _tsv_rows(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    lines = ((where, line) for where, line in iter_lines(path) if not line.isspace())
    cells: Iterator[tuple[str, list[str]]] = (
        (where, _without_end(line).split("\t")) for where, line in lines
    )
    first = next(cells, None)
    if first is None:
        return
    where, names = first
    if all(field.isdecimal() for field in fields):
        names = [str(number) for number, _ in enumerate(names, start=1)]
        cells = itertools.chain([first], cells)
    for field in fields:
        if field not in names:
            raise _no_field(field, names, where, "column")
    columns = [names.index(field) for field in fields]
    for where, row in cells:
        if len(row) != len(names):
            got, allowed = f"{len(row)} columns", f"{len(names)}, as in the first line"
            raise UserError(where, got=got, allowed=allowed, do=FIX_LINE)
        named = zip(columns, fields, strict=True)
        yield tuple((row[column], f"{where}, column {field!r}") for column, field in named)


def _parquet_rows(path: Path, fields: Sequence[str]) -> Iterator[Row]:
    from pyarrow import parquet

    # Without pre_buffer Arrow reads page by page, not a whole row group, maybe the whole file.
    with (
        broken_file(path, "a parquet file"),
        parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as file,
    ):
        columns = _columns(fields, file.schema_arrow.names, path)
        for column in set(columns):
            _check_mean_size(file.metadata, column, path)
        number = 0
        for batch in file.iter_batches(PARQUET_ROWS, columns=[*dict.fromkeys(columns)]):
            for values in zip(*map(batch.column, columns), strict=True):
                number += 1
                row = {c: it.as_py() for c, it in zip(columns, values, strict=True)}
                yield _table_row(row, fields, f"{path}, row {number}")


def _check_mean_size(metadata: Any, column: str, path: Path) -> None:
    """Raise a UserError for a column whose texts are too large on average, before it is
    unpacked."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        parts = map(group.column, range(group.num_columns))
        own = (it for it in parts if it.path_in_schema.partition(".")[0] == column)
        size = sum(it.total_uncompressed_size for it in own)
        check_size(size // max(1, group.num_rows), f"{path}, row group {number + 1}")


def _columns(fields: Sequence[str], there: Sequence[str], origin: object) -> list[str]:
    """The column that holds each field; a UserError for a missing one."""
    columns = [it if it in there else it.partition(".")[0] for it in fields]
    for field, column in zip(fields, columns, strict=True):
        if column not in there:
            raise _no_field(field, there, origin, "column")
    return columns


def _table_row(row: Mapping[str, Any], fields: Sequence[str], where: str) -> Row:
    return tuple((_at(row, it, where, "column"), f"{where}, column {it!r}") for it in fields)


def _dataset_rows(corpus: Corpus, fields: Sequence[str]) -> Iterator[Row]:
    import datasets

    with dataset_errors(corpus):
        table = datasets.load_dataset(
            corpus.dataset, corpus.subset, split=corpus.split, streaming=True
        )
    # The columns are not always known; where they are, others (images!) need not be read.
    if table.column_names is not None:
        columns = _columns(fields, table.column_names, corpus.origin)
        table = table.select_columns([*dict.fromkeys(columns)])
    rows = enumerate(table, start=1)
    while True:
        with dataset_errors(corpus):
            number, row = next(rows, (0, None))
        if row is None:
            return
        yield _table_row(row, fields, f"{corpus.origin}, row {number}")


@contextmanager
def dataset_errors(corpus: Corpus) -> Iterator[None]:
    """Turns the errors of `datasets` (name, split, network), which have many types, into a
    UserError."""
    try:
        yield
    except Exception as error:
        what = f"cannot read dataset {corpus.origin}"
        do = "check dataset, subset and split, and that the Hub can be reached (or give a path)"
        raise UserError(what, got=first_line(error), do=do) from error
