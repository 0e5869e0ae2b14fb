"""Documents -> tokens, with any tokenizer of Transformers, in this process or in several.

Promises: batches come out in the order in which they went in, so the result does not depend on the
number of workers; only a few batches are in memory at once; Ctrl-C, and even a killed parent, leave
no worker behind.
"""

import hashlib
import itertools
import multiprocessing
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neutral_residues.data.documents import short_hash
from neutral_residues.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A batch is what goes to a worker at once: sending it costs next to nothing, and dozens of it fit
# in memory.
BATCH_CHARACTERS = 2**18
BATCH_DOCUMENTS = 1024
# Starting workers takes seconds, in which this process alone is done with so little.
SMALL_CORPUS_BATCHES = 16


def end_of_text_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id of the token that ends a document.

    Raises:
        UserError: the tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no end-of-text token",
            got="eos_token null",
            allowed="a tokenizer with eos_token",
            do="set eos_token in its tokenizer_config.json",
        )
    return int(tokenizer.eos_token_id)


def tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A short hash of what decides a text's tokens: the serialised tokenizer and its end-of-text
    token."""
    split = getattr(tokenizer, "split_special_tokens", False)
    return short_hash(
        _serialised(tokenizer) or _saved_files(tokenizer), split, tokenizer.eos_token_id
    )


def _serialised(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """A tokenizer of the `tokenizers` library as JSON, or None for one in Python."""
    if not tokenizer.is_fast:
        return None
    from tokenizers import Tokenizer

    # Truncation and padding may be left from an earlier call: they must neither cut text nor change
    # the key.
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return str(plain.to_str())


def _saved_files(tokenizer: "PreTrainedTokenizerBase") -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return [[path.name, hashlib.blake2b(path.read_bytes()).hexdigest()] for path in files]


def _token_dtype(tokenizer: "PreTrainedTokenizerBase") -> str:
    # Vocabularies have gaps: the largest id counts, not the number of entries.
    vocabulary_size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


@dataclass(frozen=True)
class EncodedBatch:
    """A few documents as tokens, D of them with N tokens together."""

    tokens_N: NDArray[Any]
    num_tokens_D: NDArray[np.int64]
    num_bytes_D: NDArray[np.int64]
    held_out_D: NDArray[np.bool_]


@dataclass(frozen=True)
class Encoder:
    """All that a worker needs to encode documents; pickled once for each worker."""

    serialised: str | None
    split_special_tokens: bool
    in_python: "PreTrainedTokenizerBase | None"
    end_of_text: int
    dtype: str
    held_out_share: float
    seed: int

    @classmethod
    def of(
        cls, tokenizer: "PreTrainedTokenizerBase", held_out_share: float, seed: int
    ) -> "Encoder":
        text = _serialised(tokenizer)
        split = bool(getattr(tokenizer, "split_special_tokens", False))
        slow = tokenizer if text is None else None
        return cls(
            text,
            split,
            slow,
            end_of_text_id(tokenizer),
            _token_dtype(tokenizer),
            held_out_share,
            seed,
        )

    def ready(self) -> "Callable[[list[str]], EncodedBatch]":
        """The function that encodes a batch of documents."""
        if self.serialised is None:
            slow = self.in_python
            assert slow is not None
            # verbose=False: no warning about texts longer than the model's window, which is of no
            # matter here.
            return lambda texts: self._encode(
                texts, lambda t: slow.encode(t, add_special_tokens=False, verbose=False)
            )
        from tokenizers import Tokenizer

        fast = Tokenizer.from_str(self.serialised)
        fast.encode_special_tokens = self.split_special_tokens
        # One at a time: faster than the whole batch, whose offsets and strings would all be in
        # memory at once.
        return lambda texts: self._encode(
            texts, lambda t: fast.encode_batch_fast([t], add_special_tokens=False)[0].ids
        )

    def _encode(self, texts: list[str], ids_of: Callable[[str], list[int]]) -> EncodedBatch:
        pieces = [np.array([*ids_of(text), self.end_of_text], dtype=self.dtype) for text in texts]
        encoded = [text.encode() for text in texts]
        return EncodedBatch(
            np.concatenate(pieces),
            np.array([len(piece) for piece in pieces], dtype=np.int64),
            np.array([len(data) for data in encoded], dtype=np.int64),
            np.array([self.is_held_out(data) for data in encoded], dtype=np.bool_),
        )

    def is_held_out(self, document: bytes) -> bool:
        if not self.held_out_share:
            return False
        key = self.seed.to_bytes(16, "little", signed=True)
        number = int.from_bytes(
            hashlib.blake2b(document, key=key, digest_size=8).digest(), "little"
        )
        return number < int(self.held_out_share * 2**64)


_encode_here: Callable[[list[str]], EncodedBatch] | None = None


def _start_worker(encoder: Encoder) -> None:
    global _encode_here
    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encode_here = encoder.ready()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> EncodedBatch:
    assert _encode_here is not None
    return _encode_here(texts)


def encode_in_order(
    batches: Iterable[list[str]], encoder: Encoder, num_workers: int
) -> Generator[EncodedBatch, None, None]:
    """The batches, encoded, in their own order. Close it to end the workers early."""
    batches = iter(batches)
    first = list(itertools.islice(batches, SMALL_CORPUS_BATCHES)) if num_workers else []
    if len(first) < SMALL_CORPUS_BATCHES:
        with _one_thread():
            yield from map(encoder.ready(), itertools.chain(first, batches))
        return
    yield from _encode_in_workers(itertools.chain(first, batches), encoder, num_workers)


def _encode_in_workers(
    batches: Iterable[list[str]], encoder: Encoder, num_workers: int
) -> Generator[EncodedBatch, None, None]:
    # Spawned: forking a process in which the tokenizer or torch runs threads can hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_workers, context, initializer=_start_worker, initargs=(encoder,))
    waiting: deque[Future[EncodedBatch]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            # The window keeps memory flat: the corpus is read no faster than it is written.
            if len(waiting) > 4 * num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        do = "try fewer workers; in a script, put the call under if __name__ == '__main__'"
        raise UserError(
            "a tokenising worker ended early, killed or out of memory", do=do
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """No threads inside the tokenizer: they would make it warn, or hang, when a loader forks this
    process later."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def in_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of about BATCH_CHARACTERS."""
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
