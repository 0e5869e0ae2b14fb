"""The tokens of a corpus, memory-mapped from three flat files.

A stream is the tokens of all documents in document order, each document followed by the end-of-text
token. Its folder:

    tokens.bin               (num_tokens,) uint16, or uint32 where the vocabulary needs it
    document_ends.bin        (num_documents,) int64: where each document ends in tokens.bin,
                             end-of-text included
    document_bytes.bin       (num_documents,) int64: UTF-8 bytes of each document's text, for bits
                             per byte; of a chat or pair: of what is predicted
    predicted.bin            (num_tokens,) bool, only of chats and pairs: which tokens are predicted

Blocks of a fixed number of tokens are only a view (`TokenStream.blocks`), so runs with other block
sizes share the files.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neutral_residues.config.data import Role
from neutral_residues.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS, ENDS, BYTES = "tokens.bin", "document_ends.bin", "document_bytes.bin"
PREDICTED = "predicted.bin"


@dataclass(frozen=True, eq=False)
class TokenStream:
    """All tokens of a corpus, or of the held-out part of one, in document order.

    A stream that was opened from a folder is pickled as the folder's name, so that loader workers
    map the same files.
    """

    name: str  # the corpus' name
    role: Role
    tokens: NDArray[Any]  # the three arrays are those of the files above
    document_ends: NDArray[np.int64]
    document_bytes: NDArray[np.int64]
    folder: Path | None = None  # where the arrays lie; None for a stream made in memory
    predicted: NDArray[np.bool_] | None = None  # whether each token is predicted; None: all are

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_predicted(self) -> int:
        """Number of tokens that are predicted; in chats and pairs the others are only read."""
        return self.num_tokens if self.predicted is None else int(self.predicted.sum())

    @property
    def num_bytes(self) -> int:
        return int(self.document_bytes.sum())

    @property
    def num_documents(self) -> int:
        return len(self.document_ends)

    def content_hash(self) -> str:
        """Hash of the stream, the same for the same documents under the same tokenizer; reads all
        of it."""
        digest = hashlib.blake2b(self.tokens.astype(np.int64).tobytes(), digest_size=16)
        digest.update(self.document_ends.tobytes())
        if self.predicted is not None:
            digest.update(self.predicted.tobytes())
        return digest.hexdigest()

    def document(self, number: int) -> NDArray[Any]:
        """The tokens of one document, its end-of-text token included."""
        start = int(self.document_ends[number - 1]) if number else 0
        return self.tokens[start : int(self.document_ends[number])]

    def document_text(
        self, number: int, tokenizer: "PreTrainedTokenizerBase", *, max_tokens: int | None = None
    ) -> str:
        """The text of one document, or of its first `max_tokens` tokens."""
        tokens = self.document(number)[:max_tokens].tolist()
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    def first_documents(self, max_tokens: int) -> "TokenStream":
        """The first whole documents, as many as fit in `max_tokens` tokens, but at least one."""
        return self.documents(max(1, int((self.document_ends <= max_tokens).sum())))

    def documents(self, number: int) -> "TokenStream":
        """The first `number` documents."""
        ends, num_bytes = self.document_ends[:number], self.document_bytes[:number]
        end = int(ends[-1]) if len(ends) else 0
        predicted = None if self.predicted is None else self.predicted[:end]
        first = (self.tokens[:end], ends, num_bytes)
        return TokenStream(self.name, self.role, *first, predicted=predicted)

    def beginnings(self, num_tokens: int, *, max_documents: int) -> "TokenStream":
        """The first `num_tokens` tokens of documents that have as many, each behind an end-of-text
        token that is not predicted, so that windows of `num_tokens` + 1 hold one text each. Bytes
        are estimated from the mean bytes per token of the document."""
        lengths = np.diff(self.document_ends, prepend=0)
        chosen_D = np.flatnonzero(lengths > num_tokens)[:max_documents]
        ends = self.document_ends[chosen_D]
        first_D1 = (ends - lengths[chosen_D])[:, None]
        places_DT = np.hstack([first_D1 + np.arange(num_tokens), ends[:, None] - 1])
        num_bytes = self.document_bytes[chosen_D] * num_tokens / (lengths[chosen_D] - 1)
        return TokenStream(
            self.name,
            self.role,
            self.tokens[places_DT].reshape(-1),
            (1 + np.arange(len(chosen_D))) * (num_tokens + 1),
            np.maximum(1, num_bytes.round()).astype(np.int64),
            predicted=np.tile(np.arange(num_tokens + 1) < num_tokens, len(chosen_D)),
        )

    def blocks(self, block_tokens: int) -> NDArray[Any]:
        """The stream as rows of `block_tokens` tokens: (num_blocks, block_tokens), a view; a
        UserError if it has less than one block.

        The tail that fills no block is left out: only evaluation reads the whole stream.
        """
        num_blocks = self.num_tokens // block_tokens
        if num_blocks == 0:
            what, got = (
                f"corpus {self.name!r} is smaller than one block",
                f"{self.num_tokens} tokens",
            )
            allowed, do = (
                f"at least block_tokens = {block_tokens}",
                "give more text or shorter blocks",
            )
            raise UserError(what, got=got, allowed=allowed, do=do)
        return self.tokens[: num_blocks * block_tokens].reshape(num_blocks, block_tokens)

    def predicted_block(self, block_tokens: int, number: int) -> NDArray[np.bool_]:
        """(block_tokens,) whether each token of a block is predicted."""
        if self.predicted is None:
            return np.ones(block_tokens, dtype=bool)
        return self.predicted[number * block_tokens : (number + 1) * block_tokens]

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return open_stream, (self.folder, self.name, self.role, self.tokens.dtype.name)
        arrays = (self.tokens, self.document_ends, self.document_bytes)
        return TokenStream, (self.name, self.role, *arrays, None, self.predicted)


def open_stream(folder: Path, name: str, role: Role, dtype: str) -> TokenStream:
    """The stream whose files lie in `folder`, memory-mapped; `dtype` is that of the tokens."""

    def mapped(file: str, kind: str) -> NDArray[Any]:
        path = folder / file
        # An empty file cannot be mapped.
        return np.memmap(path, kind, mode="r") if path.stat().st_size else np.zeros(0, kind)

    ends, num_bytes = mapped(ENDS, "int64"), mapped(BYTES, "int64")
    predicted = mapped(PREDICTED, "bool") if (folder / PREDICTED).is_file() else None
    return TokenStream(name, role, mapped(TOKENS, dtype), ends, num_bytes, folder, predicted)


class StreamWriter:
    """Appends documents to the files of a stream in a new folder; `files` closes them. `in_parts`:
    only some of their tokens are predicted."""

    def __init__(
        self, folder: Path, dtype: str, files: ExitStack, *, in_parts: bool = False
    ) -> None:
        folder.mkdir()
        self.dtype, self.num_tokens = dtype, 0
        self._tokens, self._ends, self._bytes = (
            files.enter_context((folder / name).open("wb")) for name in (TOKENS, ENDS, BYTES)
        )
        predicted = folder / PREDICTED
        self._predicted = files.enter_context(predicted.open("wb")) if in_parts else None

    def append(
        self, token_ids: Sequence[int], num_bytes: int, predicted: Sequence[bool] = ()
    ) -> None:
        """Append a document: its tokens, end-of-text included, and the UTF-8 bytes of its text;
        with `in_parts`, whether each token is predicted, and the bytes of what is."""
        if self._predicted is not None:
            assert len(predicted) == len(token_ids)
            self._predicted.write(np.array(predicted, dtype=bool).tobytes())
        self.num_tokens += len(token_ids)
        self._tokens.write(np.array(token_ids, dtype=self.dtype).tobytes())
        self._ends.write(np.int64(self.num_tokens).tobytes())
        self._bytes.write(np.int64(num_bytes).tobytes())
