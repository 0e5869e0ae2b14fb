"""Counts the words of a text as a tokenizer splits it: all that learning merges needs.

A word is a stretch of text that no merge can cross: what the tokenizer's own normaliser and
pre-tokeniser separate. Where they leave spaces inside a stretch (as for Llama 2), a word ends
before a token that begins with a space, unless the token before ends in one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from neutral_residues.data.encode import batches, plain_backend
from neutral_residues.vocabulary.spelling import Spelling

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Word = tuple[int, ...]
"""The ids of its tokens."""


@dataclass(frozen=True)
class WordCounts:
    """Words of a text, each with how often it occurs."""

    counts: Counter[Word]
    num_bytes: int
    """UTF-8 bytes of the text."""
    num_spaced_words: int
    """Words between white space, as people count them."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the text, without end-of-text."""
        return sum(len(word) * count for word, count in self.counts.items())

    def __add__(self, other: "WordCounts") -> "WordCounts":
        """The words of two texts together."""
        return WordCounts(
            self.counts + other.counts,
            self.num_bytes + other.num_bytes,
            self.num_spaced_words + other.num_spaced_words,
        )


def count_words(
    texts: Iterable[str],
    tokenizer: "PreTrainedTokenizerBase",
    spelling: Spelling,
    *,
    advance: Callable[[int], object] = lambda num_bytes: None,
) -> WordCounts:
    """Count the words of documents; `advance` is called with the bytes of each batch."""
    backend = plain_backend(tokenizer)
    backend.encode_special_tokens = getattr(tokenizer, "split_special_tokens", False)
    counts: Counter[Word] = Counter()
    num_bytes = num_spaced_words = 0
    for batch in batches(texts):
        stretches: Counter[Word] = Counter()
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            stretches.update(_stretches(encoding))
        for stretch, count in stretches.items():
            for word in split_at_spaces(stretch, spelling):
                counts[word] += count
        batch_bytes = sum(len(text.encode()) for text in batch)
        num_bytes += batch_bytes
        num_spaced_words += sum(len(text.split()) for text in batch)
        advance(batch_bytes)
    return WordCounts(counts, num_bytes, num_spaced_words)


def _stretches(encoding: "Encoding") -> Iterator[Word]:
    """The stretches that the tokenizer's pre-tokeniser separates; added tokens are stretches
    too."""
    ids, numbers = encoding.ids, np.array(encoding.word_ids)
    ends = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
    for begin, end in pairwise([0, *ends.tolist(), len(ids)]):
        yield tuple(ids[begin:end])


def split_at_spaces(stretch: Word, spelling: Spelling) -> list[Word]:
    """A stretch split before each token that begins with a space, but not between spaces."""
    begin, after = spelling.begin_with_space, spelling.end_in_space
    cuts = [
        number
        for number in range(1, len(stretch))
        if stretch[number] in begin and stretch[number - 1] not in after
    ]
    return [stretch[i:j] for i, j in pairwise([0, *cuts, len(stretch)])] if cuts else [stretch]
