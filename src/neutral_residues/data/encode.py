"""Documents, chats and pairs of a corpus -> the tokens of each.

The work is done by the threads of the `tokenizers` library, which are as many as the machine has
cores (RAYON_NUM_THREADS) and off where TOKENIZERS_PARALLELISM is false; they do not change the
result. Processes, `datasets.map` among them, were measured and gained nothing (LAB.md, "tokenise
and pack").
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from neutral_residues.config.data import Corpus
from neutral_residues.data.chat import answer_bytes, chat_encoder
from neutral_residues.data.documents import iter_chats, iter_documents, iter_pairs, said
from neutral_residues.data.pairs import pair_encoder, predicted_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Enough documents for all threads, few enough that their tokens stay in the processor's cache.
BATCH_CHARACTERS = 2**18

D = TypeVar("D", bound=Sized)


class Encoded(NamedTuple):
    """One document of a corpus."""

    text: bytes  # its content without a template; decides whether it is held out
    token_ids: list[int]  # end-of-text included
    num_bytes: int  # UTF-8 bytes of the text that is predicted
    predicted: Sequence[bool] = ()  # for each token, whether it is predicted; (): all are


def encoded(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Iterator[list[Encoded]]:
    """The documents of a corpus in batches; raises a UserError as `iter_documents`, and for text
    that cannot be tokenised."""
    encode = {"documents": _documents, "chats": _chats, "pairs": _pairs}[corpus.kind]
    return encode(corpus, tokenizer, end_of_text)


def _documents(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Iterator[list[Encoded]]:
    encode = encoder(tokenizer, end_of_text)
    for texts in batches(iter_documents(corpus)):
        documents = [text.encode() for text in texts]
        each = zip(documents, encode(texts), strict=True)
        yield [Encoded(document, ids, len(document)) for document, ids in each]


def _chats(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Iterator[list[Encoded]]:
    encode = chat_encoder(tokenizer, end_of_text)
    for chats in batches(iter_chats(corpus), size=lambda chat: len(said(chat))):
        each = zip(chats, encode(chats), strict=True)
        yield [
            Encoded(said(chat).encode(), ids, answer_bytes(chat), predicted)
            for chat, (ids, predicted) in each
        ]


def _pairs(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Iterator[list[Encoded]]:
    encode = pair_encoder(corpus, tokenizer, end_of_text)
    for pairs in batches(iter_pairs(corpus), size=lambda pair: len(pair.texts)):
        each = zip(pairs, encode(pairs), strict=True)
        yield [
            Encoded(pair.texts.encode(), ids, predicted_bytes(pair, corpus), predicted)
            for pair, (ids, predicted) in each
        ]


def plain_backend(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """A copy of its `tokenizers` backend, without truncation and padding of earlier calls, which
    would change tokens."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


def encoder(
    tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from documents to the tokens of each, end-of-text included."""
    if not tokenizer.is_fast:
        # verbose=False: documents may be longer than the model's window.
        options = {"add_special_tokens": False, "verbose": False}
        return lambda texts: [[*tokenizer.encode(t, **options), end_of_text] for t in texts]
    plain = plain_backend(tokenizer)
    plain.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encodings = plain.encode_batch_fast(texts, add_special_tokens=False)
        return [[*encoding.ids, end_of_text] for encoding in encodings]

    return encode


def batches(documents: Iterable[D], size: Callable[[D], int] = len) -> Iterator[list[D]]:
    """Documents in lists of about BATCH_CHARACTERS."""
    batch: list[D] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += size(document)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch
