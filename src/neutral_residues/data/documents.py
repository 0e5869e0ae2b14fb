"""Reads the documents of a corpus one by one, whatever the format.

In .txt files (also .gz, .zst) documents are separated by one or more empty lines; everything else
has rows, and the text is in one of their fields (`rows.py`). In a corpus of chats that field holds
a list of messages, {"role": ..., "content": ...}; in a corpus of pairs there is also a prompt, in
another field or in the same line of another file. `iter_chats` and `iter_pairs` give these, and
`iter_documents` their texts.

Promises: memory stays flat, whatever the size of the corpus. Bad input is one line that names the
corpus and where it went wrong (file, line, column). Empty documents, documents of white space only
and nulls are skipped; every other document is given as it is, except that in .txt files line ends
become "\\n" and a byte-order mark is dropped.

Does not: clean, filter, shuffle or deduplicate.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from neutral_residues.config.data import Corpus
from neutral_residues.data.lines import FIX_LINE, Line, check_size, codec_of, iter_lines
from neutral_residues.data.rows import (
    ALLOWED_FILES,
    Value,
    dataset_errors,
    iter_line_pairs,
    iter_rows,
    kind_of,
)
from neutral_residues.digest import known_digest, short_hash
from neutral_residues.errors import UserError
from neutral_residues.files import SURROGATES, check_is_file, disk_errors

T = TypeVar("T")
ROLES = ("system", "user", "assistant")

Chat = list[dict[str, str]]
"""Messages, each with its role and content, as Transformers and TRL take them."""


class Pair(NamedTuple):
    """A prompt and its completion, as in TRL; for a translation, both sides."""

    prompt: str
    completion: str

    @property
    def texts(self) -> str:
        """Both texts in one order for both directions of a translation, so that these are held out
        together."""
        return "\n".join(sorted(self))


def iter_documents(corpus: Corpus) -> Iterator[str]:
    """The non-empty documents of `corpus` in order, at most `corpus.max_documents`.

    Raises:
        UserError: when something cannot be read: no such file, an unknown suffix, broken
            compression, a line that is not UTF-8 or not JSON, a missing field or column, a text
            that is not a string, an unknown dataset, no document at all.
    """
    if corpus.kind == "chats":
        yield from map(said, iter_chats(corpus))
        return
    if corpus.kind == "pairs":
        yield from (pair.texts for pair in iter_pairs(corpus))
        return
    with _naming(corpus):
        texts = (text for text in _texts(corpus) if text and not text.isspace())
        yield from _counted(texts, corpus)


def iter_chats(corpus: Corpus) -> Iterator[Chat]:
    """The chats of a corpus with `chat: true`, otherwise as `iter_documents`; each has a question
    and a message of the assistant.

    Raises:
        UserError: as `iter_documents`, and for messages in another form.
    """
    with _naming(corpus), closing(iter_rows(corpus, [corpus.field])) as rows:
        yield from _counted((_checked_chat(*value) for (value,) in rows), corpus)


def iter_pairs(corpus: Corpus) -> Iterator[Pair]:
    """The pairs of a corpus with `prompt` or `prompt_path`, otherwise as `iter_documents`.

    Raises:
        UserError: as `iter_documents`; for a pair with only one text, and for files with different
            numbers of lines.
    """
    if corpus.prompt_path is not None and corpus.path is not None:
        found = iter_line_pairs(corpus.prompt_path, corpus.path)
    else:
        assert corpus.prompt is not None
        found = iter_rows(corpus, [corpus.prompt, corpus.field])
    with _naming(corpus), closing(found) as rows:
        yield from _counted(filter(None, starmap(_checked_pair, rows)), corpus)


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
    """The content of all messages of a chat, without a template."""
    return "\n".join(message["content"] for message in chat)


def _counted(documents: Iterator[T], corpus: Corpus) -> Iterator[T]:
    """The first `corpus.max_documents`; a UserError if there is none."""
    num_documents = 0
    for document in documents:
        yield document
        num_documents += 1
        if num_documents == corpus.max_documents:
            return
    if num_documents == 0:
        raise UserError(f"no documents in {corpus.origin}", do="give a corpus with text in it")


def iter_groups(corpus: Corpus, group_by: str) -> Iterator[str]:
    """For each document of `iter_documents`, the value of its field or column `group_by`: the book,
    article or site that it comes from.

    Raises:
        UserError: as there, for a text file, which has no fields, and for an empty value.
    """
    with _naming(corpus):
        lines = corpus.path is not None and (
            corpus.prompt_path or kind_of(corpus.path)[0] == ".txt"
        )
        if lines:
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

    For a file it depends on its bytes and on the settings that change the documents, but not on the
    corpus' name, role and path; for a dataset, on its name, subset, split and the hash of
    `datasets` (the commit on the Hub, the modification time of local files).
    """
    identity: list[Any]
    with _naming(corpus):
        if corpus.path is None:
            import datasets

            with dataset_errors(corpus):
                builder = datasets.load_dataset_builder(corpus.dataset, corpus.subset)
            version = str(builder.info.version)
            identity = [corpus.dataset, builder.config_id, version, builder.hash, corpus.split]
        elif corpus.prompt_path is None:
            identity = [*kind_of(corpus.path), _digest(corpus.path)]
        else:
            paths = (corpus.prompt_path, corpus.path)
            identity = [[codec_of(path), _digest(path)] for path in paths]
    if corpus.prompt is not None:
        identity.append(["prompt", corpus.prompt])
    return short_hash(*identity, corpus.field, corpus.max_documents)


def _digest(path: Path) -> str:
    check_is_file(path, ALLOWED_FILES)
    with disk_errors(path):
        return known_digest(path)


def check_not_the_same(corpora: Sequence[Corpus]) -> None:
    """Raise a UserError if a source and a target corpus are the same text: the same file, a copy of
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
    """Errors inside the block begin with the corpus' name."""
    try:
        yield
    except UserError as error:
        raise UserError(f"corpus {corpus.name!r}: {error}") from error


def _texts(corpus: Corpus) -> Iterator[str]:
    if corpus.path is not None and kind_of(corpus.path)[0] == ".txt":
        yield from _paragraphs(iter_lines(corpus.path))
        return
    with closing(iter_rows(corpus, [corpus.field])) as rows:
        yield from (_checked_text(*value) for (value,) in rows)


def _paragraphs(lines: Iterable[Line]) -> Iterator[str]:
    """Groups of lines between empty lines, without the last line end of each."""
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


def _checked_text(text: Any, where: str) -> str:
    """Check a value of the text field; a null is an empty document."""
    if text is None:
        return ""
    if not isinstance(text, str):
        got, do = type(text).__name__, "set field to that of the text"
        do = "for messages set chat: true" if isinstance(text, list) else do
        raise UserError(where, got=got, allowed="a string", do=do)
    # JSON can hold half a surrogate pair ("\ud83d"), which cannot be encoded or tokenised.
    if SURROGATES.search(text):
        raise UserError(f"{where}: half of a surrogate pair", do=FIX_LINE)
    check_size(len(text), where)
    return text


def _checked_pair(prompt: Value, completion: Value) -> Pair | None:
    """Check the values of both fields; None if both are empty."""
    pair = Pair(_checked_text(*prompt), _checked_text(*completion))
    sides = zip(pair, (prompt, completion), strict=True)
    empty = [where for text, (_, where) in sides if not text or text.isspace()]
    if len(empty) == 1:
        what, do = f"{empty[0]}: empty, and the other side of the pair is not", FIX_LINE
        raise UserError(what, do=do)
    return None if empty else pair


def _checked_chat(messages: Any, where: str) -> Chat:
    """Check a value of the field of a chat."""
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
