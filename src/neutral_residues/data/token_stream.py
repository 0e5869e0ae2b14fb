"""Documents -> one flat stream of tokens on disk, made once and read through memory maps.

A stream is the tokens of all documents in document order, each document followed by the end-of-text
token. On disk:

    meta.json                    what the cache was made from, and the sizes of its streams
    train/, held_out/            one folder for each stream
        tokens.bin               (num_tokens,) uint16, or uint32 where the vocabulary needs it
        document_ends.bin        (num_documents,) int64: where each document ends in tokens.bin, end-of-text included
        document_bytes.bin       (num_documents,) int64: UTF-8 bytes of each document's text, for bits per byte

Promises: the files are the same to the byte for any number of workers. Memory stays flat, whatever
the size of the corpus. A cache is whole or not there: an interrupted run leaves none, a damaged one
is made again, and of several processes that want the same one the first makes it while the others
wait. Text is never cut and no special token is added but end-of-text.

Blocks of a fixed number of tokens are only a view (`TokenStream.blocks`), so runs with other block
sizes share a cache.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    FileSizeColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from neutral_residues.config.run import Corpus, Role
from neutral_residues.data.documents import content_key, iter_documents, short_hash
from neutral_residues.data.tokenise import (
    EncodedBatch,
    Encoder,
    encode_in_order,
    end_of_text_id,
    in_batches,
    tokenizer_key,
)
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenStream",
    "check_not_the_same",
    "end_of_text_id",
    "open_stream",
    "tokenise",
    "tokenizer_key",
]

FORMAT_VERSION = 1
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True, eq=False)
class TokenStream:
    """All tokens of a corpus, or of the held-out part of one, in document order.

    A stream that was opened from a folder is pickled as the folder's name, so that loader workers
    map the same files.
    """

    name: str
    """The corpus' name."""
    role: Role
    tokens: NDArray[Any]
    """(num_tokens,) uint16 or uint32; each document followed by the end-of-text token."""
    document_ends: NDArray[np.int64]
    """(num_documents,): where each document ends in `tokens`, its end-of-text token included."""
    document_bytes: NDArray[np.int64]
    """(num_documents,): UTF-8 bytes of each document's text, end-of-text not counted."""
    folder: Path | None = None
    """Where the three arrays lie; None for a stream made in memory."""

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        return int(self.document_bytes.sum())

    @property
    def num_documents(self) -> int:
        return len(self.document_ends)

    def content_hash(self) -> str:
        """The same for the same documents under the same tokenizer; reads the whole stream."""
        digest = hashlib.blake2b(self.tokens.astype(np.int64).tobytes(), digest_size=16)
        digest.update(self.document_ends.tobytes())
        return digest.hexdigest()

    def blocks(self, block_tokens: int) -> NDArray[Any]:
        """The stream as rows of `block_tokens` tokens: (num_blocks, block_tokens), a view.

        The tail that fills no block is left out: training does without it. Evaluation reads the
        whole stream instead.

        Raises:
            UserError: the stream has less than one block.
        """
        num_blocks = self.num_tokens // block_tokens
        if num_blocks == 0:
            raise UserError(
                f"corpus {self.name!r} is smaller than one block",
                got=f"{self.num_tokens} tokens",
                allowed=f"at least block_tokens = {block_tokens}",
                do="give more text or make blocks shorter",
            )
        return self.tokens[: num_blocks * block_tokens].reshape(num_blocks, block_tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return open_stream, (self.folder, self.name, self.role, self.tokens.dtype.name)
        return TokenStream, (
            self.name,
            self.role,
            self.tokens,
            self.document_ends,
            self.document_bytes,
        )


def open_stream(folder: Path, name: str, role: Role, dtype: str) -> TokenStream:
    """The stream whose three files lie in `folder`, memory-mapped for reading; `dtype` is that of
    the tokens."""

    def mapped(file: str, kind: str) -> NDArray[Any]:
        path = folder / file
        # An empty file cannot be mapped.
        return np.memmap(path, kind, mode="r") if path.stat().st_size else np.zeros(0, kind)

    ends, num_bytes = mapped("document_ends.bin", "int64"), mapped("document_bytes.bin", "int64")
    return TokenStream(name, role, mapped("tokens.bin", dtype), ends, num_bytes, folder)


def tokenise(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cache_dir: Path,
    num_workers: int,
    held_out_share: float = 0.0,
    seed: int = 0,
    show_progress: bool = True,
) -> tuple[TokenStream, TokenStream | None]:
    """The corpus as tokens, from the cache if it is there: the training stream and the held-out
    one.

    The cache is a folder in `cache_dir`, named by a hash of what decides its content: documents,
    tokenizer, held-out share and seed.

    Args:
        tokenizer: any of Transformers'; those of the `tokenizers` library are far faster.
        num_workers: processes that tokenise; 0 works in this one, and so does any number where the
            corpus is small. A script that calls this needs the usual guard, `if __name__ ==
            "__main__":`.
        held_out_share: expected share of the documents that goes to the held-out stream instead of
            the training stream, in [0, 1). A document's side depends on its text and `seed` alone,
            so duplicates are on one side.

    Returns:
        (training stream, held-out stream); the second is None where the share is 0.

    Raises:
        UserError: what `iter_documents` raises; a tokenizer without end-of-text; a share out of
            range, or one that leaves a stream without documents; a full or read-only disk; a worker
            that was killed.
    """
    _check_settings(held_out_share, num_workers)
    encoder = Encoder.of(tokenizer, held_out_share, seed)
    recipe = {
        "format_version": FORMAT_VERSION,
        "content_key": content_key(corpus),
        "tokenizer_key": tokenizer_key(tokenizer),
        "held_out_share": held_out_share,
        # Without a held-out part the seed changes nothing, and must not make a second cache.
        "seed": seed if held_out_share else None,
    }
    folder = cache_dir / f"tokens-{short_hash(recipe)}"
    streams = _open_cache(folder, corpus)
    if streams is None:
        with _alone(folder, corpus, show_progress):
            # Another process may have made it while this one waited.
            if (streams := _open_cache(folder, corpus)) is None:
                _write_cache(folder, recipe, corpus, encoder, num_workers, show_progress)
                streams = _open_cache(folder, corpus)
    assert streams is not None, "a cache that was just written must open"
    return _both_sides(streams, held_out_share)


@contextmanager
def _alone(folder: Path, corpus: Corpus, show_progress: bool) -> Iterator[None]:
    """One process at a time makes this cache. A process that dies gives the lock up."""
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            if show_progress:
                Console(stderr=True).print(
                    f"waiting for another process that tokenises {corpus.name}"
                )
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_settings(held_out_share: float, num_workers: int) -> None:
    if not 0 <= held_out_share < 1:
        raise UserError(
            "held_out_share", got=held_out_share, allowed="0 <= share < 1", do="0.01 is usual"
        )
    if num_workers < 0:
        raise UserError(
            "num_workers", got=num_workers, allowed="0 or more", do="0 tokenises in this process"
        )


def _both_sides(
    streams: dict[str, TokenStream], held_out_share: float
) -> tuple[TokenStream, TokenStream | None]:
    for side, stream in streams.items():
        if stream.num_documents == 0:
            raise UserError(
                f"corpus {stream.name!r} has no document left for its {side} part",
                got=(
                    f"{sum(s.num_documents for s in streams.values())} documents, held_out_share"
                    f" {held_out_share}"
                ),
                do="give more documents or another share",
            )
    return streams[TRAIN], streams.get(HELD_OUT)


def check_not_the_same(corpora: Sequence[Corpus]) -> None:
    """Refuse a source and a target that are the same text: the same file, a copy of it, or the same
    dataset.

    Two fields of one file are two texts. `max_documents` does not count: part of a text is no other
    text.

    Raises:
        UserError: naming both corpora; or what `content_key` raises.
    """
    keys = [content_key(corpus.model_copy(update={"max_documents": None})) for corpus in corpora]
    for (one, key), (other, other_key) in itertools.combinations(
        zip(corpora, keys, strict=True), 2
    ):
        if one.role != other.role and key == other_key:
            raise UserError(
                f"corpora {one.name!r} ({one.role}) and {other.name!r} ({other.role}) are the same"
                " text",
                got=f"{one.origin} and {other.origin}",
                allowed="different text for source and target",
                do="change one of them",
            )


class _StreamWriter:
    """Appends documents to the three files of a stream, which `files` closes."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        folder.mkdir()
        self.num_tokens = self.num_documents = self.num_bytes = 0
        self._tokens = files.enter_context((folder / "tokens.bin").open("wb"))
        self._ends = files.enter_context((folder / "document_ends.bin").open("wb"))
        self._bytes = files.enter_context((folder / "document_bytes.bin").open("wb"))

    def append(self, batch: EncodedBatch, chosen_D: NDArray[np.bool_]) -> None:
        num_tokens_D, num_bytes_D = batch.num_tokens_D[chosen_D], batch.num_bytes_D[chosen_D]
        self._tokens.write(batch.tokens_N[np.repeat(chosen_D, batch.num_tokens_D)].tobytes())
        self._ends.write((self.num_tokens + np.cumsum(num_tokens_D, dtype=np.int64)).tobytes())
        self._bytes.write(num_bytes_D.tobytes())
        self.num_tokens += int(num_tokens_D.sum())
        self.num_bytes += int(num_bytes_D.sum())
        self.num_documents += len(num_tokens_D)

    def sizes(self) -> dict[str, int]:
        return {
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            "num_bytes": self.num_bytes,
        }


def _write_cache(
    folder: Path,
    recipe: dict[str, Any],
    corpus: Corpus,
    encoder: Encoder,
    num_workers: int,
    show_progress: bool,
) -> None:
    sides = (TRAIN, HELD_OUT) if encoder.held_out_share else (TRAIN,)
    with whole_folder(folder) as partial:
        with ExitStack() as files, _progress(show_progress) as progress:
            writers = {side: _StreamWriter(partial / side, files) for side in sides}
            task = progress.add_task(f"tokenising {corpus.name}", total=None, documents=0)
            batches = encode_in_order(in_batches(iter_documents(corpus)), encoder, num_workers)
            for batch in files.enter_context(closing(batches)):
                for side, writer in writers.items():
                    writer.append(
                        batch, batch.held_out_D if side == HELD_OUT else ~batch.held_out_D
                    )
                documents = sum(writer.num_documents for writer in writers.values())
                progress.update(task, advance=int(batch.num_bytes_D.sum()), documents=documents)
        sizes = {side: writer.sizes() for side, writer in writers.items()}
        meta = recipe | {
            "end_of_text_id": encoder.end_of_text,
            "dtype": encoder.dtype,
            "streams": sizes,
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _progress(show: bool) -> Progress:
    documents = TextColumn("{task.fields[documents]:,} documents")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        documents,
        FileSizeColumn(),
        TransferSpeedColumn(),
    )
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=not show)


def _open_cache(folder: Path, corpus: Corpus) -> dict[str, TokenStream] | None:
    """The streams in a cache folder, or None where it is not there or not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        streams = {}
        for side, sizes in meta["streams"].items():
            stream = open_stream(folder / side, corpus.name, corpus.role, meta["dtype"])
            ends = [int(end) for end in stream.document_ends[-1:]]
            found = (stream.num_tokens, stream.num_documents, stream.num_bytes, ends)
            ends = [sizes["num_tokens"]] if sizes["num_documents"] else []
            if found != (sizes["num_tokens"], sizes["num_documents"], sizes["num_bytes"], ends):
                return None
            streams[side] = stream
        return streams
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
