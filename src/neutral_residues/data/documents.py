"""The documents of a corpus, one after another, whatever they are stored in.

    .txt        documents separated by one or more empty lines   also .gz, .zst
    .jsonl      one JSON object per line, the text in one field  also .gz, .zst
    .parquet    the text in one column
    dataset     what `datasets.load_dataset` streams, the text in one column

In a corpus of chats the field holds a list of messages instead, {"role": ..., "content": ...}:
`iter_chats` gives these, and `iter_documents` what was said.

Promises: memory stays flat, whatever the size of the corpus. Bad input is one line that names the
corpus and where it went wrong (file, line, column). Empty documents, documents of white space only
and nulls are skipped; every other document is given as it is, except that in .txt files line ends
become "\\n" and a byte-order mark is dropped.

Does not: clean, filter, shuffle or deduplicate.

Files are read here and not by `datasets`, which could: its errors do not say which line of a file
they are about, and .zst needs one more package there.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any, TypeVar

from neutral_residues.config.data import Corpus
from neutral_residues.data.lines import (
    FIX_LINE,
    READ_BYTES,
    Line,
    broken_file,
    check_size,
    codec_of,
    iter_lines,
    iter_objects,
)
from neutral_residues.digest import known_digest, short_hash
from neutral_residues.errors import UserError, first_line
from neutral_residues.files import SURROGATES, check_is_file, disk_errors

FORMATS = (".txt", ".jsonl", ".parquet")
ALLOWED_FILES = ".txt, .jsonl (both also as .gz or .zst), .parquet"
PARQUET_ROWS = 16
"""Read at once: a file may store a text once that stands in every row."""
T = TypeVar("T")
ROLES = ("system", "user", "assistant")

Chat = list[dict[str, str]]
"""Messages, each with its role and content, as Transformers and TRL take them."""
Value = tuple[Any, str]
"""What a field or column holds, and where it stands."""


def iter_documents(corpus: Corpus) -> Iterator[str]:
    """The documents of `corpus` in their own order, at most `corpus.max_documents`; none is empty.

    Raises:
        UserError: on reaching what cannot be read: no such file, an unknown suffix, broken
            compression, a line that is not UTF-8 or not JSON, a missing field or column, a text
            that is not a string, an unknown dataset, no document at all.
    """
    if corpus.chat:
        yield from map(said, iter_chats(corpus))
        return
    with _naming(corpus):
        texts = (text for text in _texts(corpus) if text and not text.isspace())
        yield from _counted(texts, corpus)


def iter_chats(corpus: Corpus) -> Iterator[Chat]:
    """The chats of a corpus with `chat: true`, as `iter_documents` gives documents; each has a
    question, and something that the assistant says.

    Raises:
        UserError: as `iter_documents`, and for messages of another form.
    """
    with _naming(corpus), closing(_values(corpus)) as values:
        yield from _counted(starmap(_checked_chat, values), corpus)


def as_chats_if_it_holds_them(corpus: Corpus) -> Corpus:
    """The corpus, with `chat: true` where its first row has no text and has messages, which is how
    TRL tells a conversational dataset."""
    chats = Corpus.model_validate(corpus.model_dump(exclude_defaults=True) | {"chat": True})
    try:
        next(iter_documents(corpus))
    except UserError:
        with suppress(UserError):
            next(iter_chats(chats))
            return chats
    return corpus


def said(chat: Chat) -> str:
    """What was said in a chat, by all, without its template."""
    return "\n".join(message["content"] for message in chat)


def _counted(documents: Iterator[T], corpus: Corpus) -> Iterator[T]:
    """The first `corpus.max_documents`; a UserError if there is none at all."""
    num_documents = 0
    for document in documents:
        yield document
        num_documents += 1
        if num_documents == corpus.max_documents:
            return
    if num_documents == 0:
        raise UserError(f"no documents in {corpus.origin}", do="give a corpus with text in it")


def iter_groups(corpus: Corpus, group_by: str) -> Iterator[str]:
    """For each document of `iter_documents`, what its field or column `group_by` says: the book,
    article or site that it comes from.

    Raises:
        UserError: as there, for a text file, which has no fields, and for an empty value.
    """
    with _naming(corpus):
        if corpus.path is not None and _kind(corpus.path)[0] == ".txt":
            what = f"{corpus.path} has no fields to group documents by"
            raise UserError(what, got=group_by, do="give .jsonl or .parquet, or no group_by")
        groups = _texts(corpus.model_copy(update={"field": group_by}))
        pairs = zip(_texts(corpus), groups, strict=True)
        found = (group for text, group in pairs if text and not text.isspace())
        for number, group in enumerate(itertools.islice(found, corpus.max_documents), start=1):
            if not group:
                do = "fill it in, or leave group_by out"
                raise UserError(f"document {number} has nothing in field {group_by!r}", do=do)
            yield group


def content_key(corpus: Corpus) -> str:
    """A short hash that is the same only if `iter_documents` gives the same documents.

    For a file, of its bytes and of the settings that change the documents; the corpus' name, role
    and path do not count. For a dataset, of its name, subset, split and what `datasets` calls its
    hash (the commit on the Hub, the time of change of local files).
    """
    identity: list[Any]
    with _naming(corpus):
        if corpus.path is None:
            import datasets

            with _dataset_errors(corpus):
                builder = datasets.load_dataset_builder(corpus.dataset, corpus.subset)
            version = str(builder.info.version)
            identity = [corpus.dataset, builder.config_id, version, builder.hash, corpus.split]
        else:
            kind = _kind(corpus.path)
            with disk_errors(corpus.path):
                digest = known_digest(corpus.path)
            identity = [*kind, digest]
    return short_hash(*identity, corpus.field, corpus.max_documents)


def check_not_the_same(corpora: Sequence[Corpus]) -> None:
    """Raise a UserError for a source and a target that are the same text: the same file, a copy of
    it, or the same dataset.

    Two fields of one file are two texts. Part of a text (`max_documents`) is not another text.
    """
    keys = [content_key(corpus.model_copy(update={"max_documents": None})) for corpus in corpora]
    pairs = itertools.combinations(zip(corpora, keys, strict=True), 2)
    for (one, key), (other, other_key) in pairs:
        if one.role != other.role and key == other_key:
            both = f"{one.name!r} ({one.role}) and {other.name!r} ({other.role})"
            what, got = f"corpora {both} are the same text", f"{one.origin} and {other.origin}"
            allowed = "different text for source and target"
            raise UserError(what, got=got, allowed=allowed, do="change one of them")


@contextmanager
def _naming(corpus: Corpus) -> Iterator[None]:
    """Errors within the block begin with the corpus' name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"corpus {corpus.name!r}: {error}") from error


def _texts(corpus: Corpus) -> Iterator[str]:
    if corpus.path is not None and _kind(corpus.path)[0] == ".txt":
        yield from _paragraphs(iter_lines(corpus.path))
        return
    with closing(_values(corpus)) as values:
        yield from starmap(_checked_text, values)


def _values(corpus: Corpus) -> Generator[Value, None, None]:
    """The field or column of every row, whatever is in it."""
    if corpus.path is None:
        yield from _dataset_values(corpus)
        return
    form, _ = _kind(corpus.path)
    if form == ".parquet":
        yield from _parquet_values(corpus.path, corpus.field)
    elif form == ".txt":
        what, allowed = f"{corpus.path} holds no chats", ".jsonl or .parquet"
        raise UserError(what, allowed=allowed, do="convert it, or remove chat")
    else:
        yield from _json_values(iter_lines(corpus.path), corpus.field)


def _kind(path: Path) -> tuple[str, str | None]:
    """Format (one of FORMATS) and codec of a file, after checking that it is a file at all."""
    check_is_file(path, ALLOWED_FILES)
    suffixes, codec = [suffix.lower() for suffix in path.suffixes] or [""], codec_of(path)
    form = "".join(suffixes[-2:-1]) if codec else suffixes[-1]
    if form not in FORMATS or (codec and form == ".parquet"):
        do = "convert or rename the file"
        raise UserError("unknown kind of file", got=path.name, allowed=ALLOWED_FILES, do=do)
    return form, codec


# ---- files of lines ----


def _paragraphs(lines: Iterable[Line]) -> Iterator[str]:
    """Runs of lines between empty ones; the run's last line end is not part of it."""
    run: list[str] = []
    run_bytes = 0
    for where, line in lines:
        if line.isspace():
            yield "".join(run).removesuffix("\n")
            run, run_bytes = [], 0
            continue
        run.append(line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line)
        run_bytes += len(line.encode())
        check_size(run_bytes, where)
    yield "".join(run).removesuffix("\n")


def _json_values(lines: Iterable[Line], field: str) -> Iterator[Value]:
    for where, row in iter_objects(lines):
        if field not in row:
            got = f"fields {', '.join(row) or 'none'}"
            raise UserError(f"{where}: no field {field!r}", got=got, do="set field to one of them")
        yield row[field], f"{where}, field {field!r}"


def _checked_text(text: Any, where: str) -> str:
    """A value of the text's field or column; a null counts as an empty document."""
    if text is None:
        return ""
    if not isinstance(text, str):
        got, do = type(text).__name__, "set field to that of the text"
        do = "for messages set chat: true" if isinstance(text, list) else do
        raise UserError(where, got=got, allowed="a string", do=do)
    # JSON can spell half a character ("\ud83d"), which no encoding and no tokenizer takes.
    if SURROGATES.search(text):
        raise UserError(f"{where}: half of a surrogate pair", do=FIX_LINE)
    check_size(len(text), where)
    return text


def _checked_chat(messages: Any, where: str) -> Chat:
    """A value of a chat's field or column."""
    form = '{"role": ..., "content": ...}'
    if not isinstance(messages, list) or not messages:
        got = "an empty list" if messages == [] else type(messages).__name__
        raise UserError(where, got=got, allowed=f"a list of {form}", do=FIX_LINE)
    chat: Chat = []
    for number, message in enumerate(messages, start=1):
        which = f"{where}, message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            got = ", ".join(message) if isinstance(message, dict) else type(message).__name__
            raise UserError(which, got=got or "{}", allowed=form, do=FIX_LINE)
        role = message["role"]
        if role not in ROLES or (role == "system" and number > 1):
            allowed = "system (only first), user or assistant"
            raise UserError(f"{which}: role", got=role, allowed=allowed, do=FIX_LINE)
        content = _checked_text(message["content"], f"{which}, content")
        if not content.strip():
            raise UserError(f"{which}: content is empty", do=FIX_LINE)
        chat.append({"role": role, "content": content})
    roles = [message["role"] for message in chat if message["role"] != "system"]
    if roles[:1] != ["user"] or "assistant" not in roles:
        got, allowed = ", ".join(roles) or "system alone", "first the user, later the assistant"
        raise UserError(f"{where}: roles", got=got, allowed=allowed, do=FIX_LINE)
    check_size(len(said(chat)), where)
    return chat


# ---- tables ----


def _parquet_values(path: Path, field: str) -> Iterator[Value]:
    from pyarrow import parquet

    # Without pre_buffer Arrow reads page by page, not a whole row group, maybe the whole file.
    with (
        broken_file(path, "a parquet file"),
        parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES) as file,
    ):
        _check_column(field, file.schema_arrow.names, path)
        _check_mean_size(file.metadata, field, path)
        batches = file.iter_batches(PARQUET_ROWS, columns=[field])
        values = itertools.chain.from_iterable(batch.column(0) for batch in batches)
        for number, value in enumerate(values, start=1):
            yield value.as_py(), f"{path}, row {number}, column {field!r}"


def _check_mean_size(metadata: Any, field: str, path: Path) -> None:
    """Raise a UserError before a column is unpacked whose texts are too large on average."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = map(group.column, range(group.num_columns))
        own = (it for it in columns if it.path_in_schema.partition(".")[0] == field)
        size = sum(it.total_uncompressed_size for it in own)
        check_size(size // max(1, group.num_rows), f"{path}, row group {number + 1}")


def _check_column(field: str, columns: Sequence[str], origin: object) -> None:
    if field not in columns:
        got = f"columns {', '.join(columns)}"
        raise UserError(f"{origin}: no column {field!r}", got=got, do="set field to one of them")


def _dataset_values(corpus: Corpus) -> Iterator[Value]:
    import datasets

    name, subset, field = corpus.dataset, corpus.subset, corpus.field
    with _dataset_errors(corpus):
        table = datasets.load_dataset(name, subset, split=corpus.split, streaming=True)
    # The columns are not always known; where they are, others (images!) need not be read.
    if table.column_names is not None:
        _check_column(field, table.column_names, corpus.origin)
        table = table.select_columns([field])
    rows = enumerate(table, start=1)
    while True:
        with _dataset_errors(corpus):
            number, row = next(rows, (0, None))
        if row is None:
            return
        _check_column(field, list(row), corpus.origin)
        yield row[field], f"{corpus.origin}, row {number}, column {field!r}"


@contextmanager
def _dataset_errors(corpus: Corpus) -> Iterator[None]:
    """`datasets` fails in many ways (name, split, network) with as many types; here it is one."""
    try:
        yield
    except Exception as error:
        what = f"cannot read dataset {corpus.origin}"
        do = "check dataset, subset and split, and that the Hub can be reached (or give a path)"
        raise UserError(what, got=first_line(error), do=do) from error
