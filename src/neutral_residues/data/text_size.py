"""The size of a corpus: counted if that is quick, else estimated from a sample of documents."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neutral_residues.config.data import Corpus, Role
from neutral_residues.data.documents import iter_documents
from neutral_residues.data.encode import encoder
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import end_of_text_id, is_cached, tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE_BYTES = 2**20
"""Corpora of up to this size, and chats and pairs of any size, are tokenised; of larger ones a
sample of at least half this size."""


@dataclass(frozen=True)
class TextSize:
    """Size of a corpus, or of the held-out part of one."""

    name: str
    role: Role
    num_documents: int
    num_tokens: int
    num_bytes: int
    is_exact: bool  # counted, not estimated
    num_predicted: int | None = None  # of the tokens, where these are chats

    @classmethod
    def of(cls, stream: TokenStream) -> "TextSize":
        """The exact size of tokenised text."""
        sizes = (stream.num_documents, stream.num_tokens, stream.num_bytes)
        predicted = None if stream.predicted is None else stream.num_predicted
        return cls(stream.name, stream.role, *sizes, is_exact=True, num_predicted=predicted)


def text_size(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cache_dir: Path,
    held_out_share: float = 0.0,
    end_of_text: str | None = None,
) -> tuple[TextSize, TextSize | None]:
    """Size of the training part and of the held-out part, as `tokenise` would make them."""
    share = held_out_share
    how: dict[str, Any] = {
        "cache_dir": cache_dir,
        "held_out_share": share,
        "end_of_text": end_of_text,
    }
    if corpus.kind == "documents" and not is_cached(corpus, tokenizer, **how):
        sample = _Sample(corpus)
        if sample.every > 1:
            encode = encoder(tokenizer, end_of_text_id(tokenizer, end_of_text))
            num_tokens = sum(map(len, encode(sample.texts)))
            whole = sample.scaled(num_tokens)
            return _part(whole, 1 - share), _part(whole, share) if share else None
    train, held_out = tokenise(corpus, tokenizer, **how)
    return TextSize.of(train), TextSize.of(held_out) if held_out else None


def _part(size: TextSize, share: float) -> TextSize:
    names = ("num_documents", "num_tokens", "num_bytes")
    return replace(size, **{name: round(share * getattr(size, name)) for name in names})


class _Sample:
    """Every n-th document of a corpus, about SAMPLE_BYTES in all; `num_documents` and `num_bytes`
    are those of the whole corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self.num_documents = self.num_bytes = self.sampled_bytes = 0
        self.texts: list[str] = []
        self.every = 1
        for text in iter_documents(corpus):
            size = len(text.encode())
            self.num_bytes += size
            if self.num_documents % self.every == 0:
                self._keep(text, size)
            self.num_documents += 1

    def _keep(self, text: str, size: int) -> None:
        self.texts.append(text)
        self.sampled_bytes += size
        while self.sampled_bytes > SAMPLE_BYTES and len(self.texts) > 1:
            self.texts, self.every = self.texts[::2], 2 * self.every
            self.sampled_bytes = sum(len(text.encode()) for text in self.texts)

    def scaled(self, num_tokens: int) -> TextSize:
        """Size of the corpus, given the number of tokens in the sample."""
        corpus = self.corpus
        tokens = round(num_tokens * self.num_bytes / self.sampled_bytes)
        sizes = (self.num_documents, tokens, self.num_bytes)
        return TextSize(corpus.name, corpus.role, *sizes, is_exact=False)
