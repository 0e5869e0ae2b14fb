"""Documents -> token streams on disk, made once and then read through memory maps.

A cache folder:

    meta.json                what the cache was made from, and which streams it has
    train/, held_out/        the streams, see `token_stream.py`
    SHA256SUMS               digests of all these files, checked whenever the cache is opened

Promises: memory stays flat, whatever the size of the corpus. A cache is complete or absent: an
interrupted run leaves none, a damaged one is made again, and if several processes need the same
one, the first makes it while the others wait. Checking reads the whole cache once for each start:
10 billion tokens, 20 GB, take about 20 s of one core where the disk is as fast. Their text, by
whose hash the cache is found, is as large or larger. Text is never truncated and no special token
is added but end-of-text. Chats are tokenised in `chat.py`, pairs in `pairs.py`.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from neutral_residues.config.data import Corpus
from neutral_residues.data.chat import chat_template
from neutral_residues.data.documents import content_key
from neutral_residues.data.encode import encoded, plain_backend
from neutral_residues.data.token_stream import StreamWriter, TokenStream, open_stream
from neutral_residues.digest import DIGESTS, check_digests, from_cache, short_hash, write_digests
from neutral_residues.errors import UserError
from neutral_residues.files import locked, whole_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
TRAIN, HELD_OUT = "train", "held_out"

DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<EOS_TOKEN>", "<eos>", "</s>")
"""Tokens that end documents in pretraining."""

Tokenising = Callable[[str], AbstractContextManager[Callable[[int], object]]]
"""Progress display: called with a description ("tokenising fr"), it gives a context manager whose
value is called with the bytes of text that are done since its last call."""


def without_display(what: str) -> AbstractContextManager[Callable[[int], object]]:
    """A progress display that shows nothing."""
    return nullcontext(lambda num_bytes: None)


def tokenise(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cache_dir: Path,
    held_out_share: float = 0.0,
    seed: int = 0,
    end_of_text: str | None = None,
    tokenising: Tokenising = without_display,
) -> tuple[TokenStream, TokenStream | None]:
    """The corpus as tokens, from the cache if it is there: the training stream, and the held-out
    one unless its share is 0.

    The cache is a folder in `cache_dir`, named by a hash of what decides its content: documents,
    tokenizer, held-out share and seed.

    Args:
        tokenizer: any of Transformers'; those of the `tokenizers` library are far faster.
        held_out_share: expected share of the documents that goes to the held-out stream instead of
            the training stream, in [0, 1). A document's side depends on its text and `seed` alone,
            so duplicates are on one side.
        end_of_text: the token that ends a document; default: see `end_of_text_id`.
        tokenising: how progress is shown.

    Raises:
        UserError: what `iter_documents` raises; a tokenizer without end-of-text, or, for chats,
            without a chat template; a share out of range, or one that leaves a stream without
            documents; a full or read-only disk.
    """
    end = end_of_text_id(tokenizer, end_of_text)
    cache = _Cache.of(corpus, tokenizer, cache_dir, held_out_share, seed, end)
    streams = cache.open() or cache.make(tokenising)
    for side, stream in streams.items():
        if stream.num_documents == 0:
            num_documents = sum(stream.num_documents for stream in streams.values())
            raise UserError(
                f"corpus {corpus.name!r} has no document left for its {side} part",
                got=f"{num_documents} documents, held_out_share {held_out_share}",
                do="give more documents or another share",
            )
    return streams[TRAIN], streams.get(HELD_OUT)


def is_cached(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cache_dir: Path,
    held_out_share: float,
    end_of_text: str | None = None,
) -> bool:
    """Whether `tokenise` would find the tokens in the cache, unless they are damaged."""
    end = end_of_text_id(tokenizer, end_of_text)
    cache = _Cache.of(corpus, tokenizer, cache_dir, held_out_share, 0, end)
    return (cache.folder / DIGESTS).is_file()


# ---- the tokenizer ----


def end_of_text_id(tokenizer: "PreTrainedTokenizerBase", given: str | None = None) -> int:
    """The id of the token that ends a document.

    That is not always `eos_token`: a chat model's ends a turn ("<|im_end|>", "<|eot_id|>"), and
    the documents of its pretraining ended with another token, which its tokenizer still has.

    Args:
        given: this token, if not None. Otherwise the tokenizer's `eos_token` if it is one of
            `DOCUMENT_ENDS`, else the first of these among its special tokens, else `eos_token`.

    Raises:
        UserError: if there is none, or `given` is not one token of this tokenizer.
    """
    if given is not None:
        if given in (vocabulary := tokenizer.get_vocab()):
            return vocabulary[given]
        allowed, do = "one token of the model's tokenizer", "check its spelling, or remove it"
        raise UserError("data.end_of_text", got=given, allowed=allowed, do=do)
    if (found := find_end_of_text(tokenizer)) is None:
        what, do = "the tokenizer has no end-of-text token", "set data.end_of_text"
        raise UserError(what, got="eos_token null", allowed="a tokenizer with eos_token", do=do)
    return found


def find_end_of_text(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """As `end_of_text_id`, without a given token; None if there is none."""
    special = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    found = [special[text] for text in DOCUMENT_ENDS if text in special]
    own = tokenizer.eos_token_id
    return own if tokenizer.eos_token in DOCUMENT_ENDS or not found else found[0]


def tokenizer_key(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A short hash of what decides a text's tokens: serialised tokenizer and end-of-text token."""
    split = getattr(tokenizer, "split_special_tokens", False)
    content = plain_backend(tokenizer).to_str() if tokenizer.is_fast else _saved_files(tokenizer)
    return short_hash(content, split, tokenizer.eos_token_id)


def _saved_files(tokenizer: "PreTrainedTokenizerBase") -> list[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return [[path.name, hashlib.blake2b(path.read_bytes()).hexdigest()] for path in files]


def _token_dtype(tokenizer: "PreTrainedTokenizerBase") -> str:
    # Vocabularies have gaps: the largest id counts, not the number of entries.
    vocabulary_size = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    return "uint16" if vocabulary_size <= 2**16 else "uint32"


# ---- the cache ----


@dataclass(frozen=True)
class _Cache:
    """The cache folder of one corpus, which may not exist yet."""

    folder: Path
    recipe: dict[str, Any]  # everything that determines its content
    corpus: Corpus
    tokenizer: "PreTrainedTokenizerBase"
    end_of_text: int

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        tokenizer: "PreTrainedTokenizerBase",
        cache_dir: Path,
        share: float,
        seed: int,
        end_of_text: int,
    ) -> Self:
        if not 0 <= share < 1:
            raise UserError("held_out_share", got=share, allowed="0 <= share < 1")
        recipe = {
            "format_version": FORMAT_VERSION,
            "content_key": content_key(corpus),
            "tokenizer_key": tokenizer_key(tokenizer),
            "held_out_share": share,
            # Without a held-out part the seed changes nothing, and must not make a second cache.
            "seed": seed if share else None,
        }
        if corpus.kind == "chats":
            recipe["chat_template"] = chat_template(tokenizer)
        if corpus.kind == "pairs":
            recipe["pairs"] = [corpus.template, corpus.completion_only_loss]
        # Only a token other than the tokenizer's own, which its key covers.
        if end_of_text != tokenizer.eos_token_id:
            recipe["end_of_text"] = end_of_text
        folder = cache_dir / f"tokens-{short_hash(recipe)}"
        return cls(folder, recipe, corpus, tokenizer, end_of_text)

    def open(self) -> dict[str, TokenStream] | None:
        """The streams in it; None if it does not exist or is damaged."""
        try:
            return self._checked()
        except UserError:
            return None

    def _checked(self) -> dict[str, TokenStream]:
        check_digests(self.folder, required=True)
        meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        folder, dtype = self.folder, meta["dtype"]
        return {side: self._side(folder, side, dtype) for side in meta["streams"]}

    def make(self, tokenising: Tokenising) -> dict[str, TokenStream]:
        """The streams, after this process or another one made them."""
        waiting = f"waiting for another process that tokenises {self.corpus.name}"
        lock = self.folder.with_name(f".{self.folder.name}.lock")
        with locked(lock, on_wait=lambda: logger.warning(waiting)):
            # Another process may have made it while this one waited.
            if (streams := from_cache(self.folder, self._checked)) is None:
                with tokenising(f"tokenising {self.corpus.name}") as advance:
                    self._write(advance)
                streams = self.open()
        assert streams is not None, "a cache that was just written must open"
        return streams

    def _write(self, advance: Callable[[int], object]) -> None:
        share, seed = self.recipe["held_out_share"], self.recipe["seed"]
        sides = (TRAIN, HELD_OUT) if share else (TRAIN,)
        dtype, in_parts = _token_dtype(self.tokenizer), self.corpus.kind != "documents"
        with whole_folder(self.folder) as partial:
            with ExitStack() as files:
                writers = {
                    side: StreamWriter(partial / side, dtype, files, in_parts=in_parts)
                    for side in sides
                }
                for batch in encoded(self.corpus, self.tokenizer, self.end_of_text):
                    for document in batch:
                        is_out = share and is_held_out(document.text, share, seed)
                        writers[HELD_OUT if is_out else TRAIN].append(*document[1:])
                    advance(sum(len(document.text) for document in batch))
            write_json(partial / "meta.json", self.recipe | {"dtype": dtype, "streams": sides})
            write_digests(partial)

    def _side(self, folder: Path, side: str, dtype: str) -> TokenStream:
        return open_stream(folder / side, self.corpus.name, self.corpus.role, dtype)


def is_held_out(document: bytes, share: float, seed: int = 0) -> bool:
    """Whether a document, as UTF-8, belongs to the held-out part of its corpus."""
    key = seed.to_bytes(16, "little", signed=True)
    digest = hashlib.blake2b(document, key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little") < int(share * 2**64)
