"""Continued BPE: more merges for a target language, appended to those of a tokenizer.

A merge joins two adjacent tokens in a word. Starting from the words as the old merges leave them,
the most frequent pair is joined, again and again. The new merges come after all old ones, so they
apply only when these are done: a text to which none of them applies keeps its tokens.
`tokenizer.add_tokens` could not promise that: added tokens match literally, before any merge, so
that "de" would split "model".

That is also true if words that are tokens are not merged (`ignore_merges`): the pieces of a token
are what its text alone is tokenised into, so the merges lead to it anyway.

After Purason et al., "Teaching Old Tokenizers New Words" (arXiv 2512.03989).
"""

import heapq
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.words import WordCounts

FEWEST = 2
"""Pairs that occur less often do not become tokens: nothing could be learnt about them."""
FLAT_SHARE, FLAT_STEP = 0.02, 1000
"""At the recommended size, the next FLAT_STEP merges save less than this share of the tokens."""

MayMerge = Callable[[int, int, str], bool]
"""Called with two ids and the string of their merged token; returns whether they may be merged."""
Pair = tuple[int, int]


@dataclass(frozen=True)
class NewToken:
    """A token made by one merge."""

    token: str
    """The token in the tokenizer's own spelling."""
    left: str
    right: str
    """The two tokens that are merged."""
    text: str
    """The token as readable text."""
    pieces: tuple[int, ...]
    """Ids of the backbone's tokens that spell the same text."""
    saved: int
    """Number of tokens that it saves in the target text: how often it was merged there."""


@dataclass(frozen=True)
class NewTokens:
    """New tokens in the order of their merges, and the size of the target text from which they were
    learnt."""

    first_id: int
    """Id of the first new token; the others follow without a gap."""
    tokens: tuple[NewToken, ...]
    num_tokens: int
    """Number of the backbone's tokens in the text, without end-of-text."""
    num_words: int
    """Number of words of the text, separated by white space."""
    num_bytes: int

    @cached_property
    def num_tokens_after(self) -> tuple[int, ...]:
        """Number of tokens of the text after 0, 1, 2, ... merges."""
        return tuple(accumulate((-t.saved for t in self.tokens), initial=self.num_tokens))

    def first(self, size: int) -> "NewTokens":
        """The first `size` new tokens, which are those that learning only `size` would give."""
        return NewTokens(
            self.first_id, self.tokens[:size], self.num_tokens, self.num_words, self.num_bytes
        )

    @property
    def recommended_size(self) -> int:
        """The size at which the curve flattens: the next 1,000 merges (or as many as are left) save
        less than 2 % of the tokens (or proportionally less)."""
        after, most = self.num_tokens_after, len(self.tokens)
        for size in range(0, most, FLAT_STEP // 10):
            step = min(FLAT_STEP, most - size)
            if after[size] - after[size + step] < FLAT_SHARE * step / FLAT_STEP * after[size]:
                return size
        return most


def learn(
    words: WordCounts,
    spelling: Spelling,
    *,
    size: int,
    first_id: int,
    may_merge: MayMerge,
    advance: Callable[[int], object] = lambda num_merges: None,
) -> NewTokens:
    """Learn up to `size` merges from the words of the target text.

    Ties go to the pair of lower ids, so the result depends on the words alone.

    Args:
        first_id: id of the first new token, larger than all of the tokenizer's: the number of rows
            of the model's embeddings, which may be larger than the tokenizer.
        may_merge: says whether a pair may be merged.
        advance: called with the number of merges made since the last call.
    """
    training = _Training(words)
    strings, known = dict(spelling.strings), set(spelling.strings.values())
    pieces: dict[int, tuple[int, ...]] = {id: (id,) for id in strings}
    found: list[NewToken] = []
    while len(found) < size and (pair := training.most_frequent()) is not None:
        left, right = pair
        token = strings[left] + strings[right]
        is_text = spelling.never_merged.isdisjoint(pair)
        if not is_text or token in known or not may_merge(left, right, token):
            training.refuse(pair)
            continue
        new_id = first_id + len(found)
        saved = training.merge(pair, new_id)
        strings[new_id], pieces[new_id] = token, pieces[left] + pieces[right]
        known.add(token)
        text = spelling.text_of(token)
        found.append(NewToken(token, strings[left], strings[right], text, pieces[new_id], saved))
        advance(1)
    return NewTokens(
        first_id, tuple(found), words.num_tokens, words.num_spaced_words, words.num_bytes
    )


class _Training:
    """The words of the text after the merges so far, and the count of each pair in them."""

    def __init__(self, words: WordCounts) -> None:
        self.words = [list(word) for word in words.counts]
        self.times = list(words.counts.values())
        self.counts: defaultdict[Pair, int] = defaultdict(int)
        self.places: defaultdict[Pair, list[int]] = defaultdict(list)  # numbers of words
        for number, word in enumerate(self.words):
            for pair in pairwise(word):
                self.counts[pair] += self.times[number]
                self.places[pair].append(number)
        self.queue = [(-count, pair) for pair, count in self.counts.items()]
        heapq.heapify(self.queue)

    def most_frequent(self) -> Pair | None:
        """The most frequent pair; None if none is left."""
        while self.queue:
            count, pair = self.queue[0]
            # A pair occurs at most as often as when its newer token was made.
            if (now := self.counts.get(pair, 0)) == -count and now >= FEWEST:
                return pair
            heapq.heappop(self.queue)
            if now >= FEWEST:
                heapq.heappush(self.queue, (-now, pair))
        return None

    def refuse(self, pair: Pair) -> None:
        """Never return this pair again."""
        del self.counts[pair], self.places[pair]

    def merge(self, pair: Pair, new_id: int) -> int:
        """Join a pair everywhere, from the left; returns the number of tokens that this saves."""
        saved, fresh = 0, set[Pair]()
        for number in self.places[pair]:
            merged = _merged(self.words[number], pair, new_id)
            saved += self._replace(number, merged, new_id, fresh)
        self.refuse(pair)
        for new_pair in fresh:
            heapq.heappush(self.queue, (-self.counts[new_pair], new_pair))
        return saved

    def _replace(self, number: int, merged: list[int], new_id: int, fresh: set[Pair]) -> int:
        """Replace a word by its merged form and update the counts of its pairs; those with the new
        token are added to `fresh`. Returns the number of tokens that this saves in the text."""
        word, times = self.words[number], self.times[number]
        self.words[number] = merged
        saved = (len(word) - len(merged)) * times
        word, merged = _difference(word, merged)
        for pair in pairwise(word):
            if pair in self.counts:
                self.counts[pair] -= times
        for pair in pairwise(merged):
            if new_id in pair:
                self.counts[pair] += times
                self.places[pair].append(number)
                fresh.add(pair)
            elif pair in self.counts:
                self.counts[pair] += times
        return saved


def _difference(one: list[int], other: list[int]) -> tuple[list[int], list[int]]:
    """Both lists without their common beginning and end, except one element on each side, which
    forms pairs with its neighbour."""
    shorter, begin, end = min(len(one), len(other)), 0, 0
    while begin < shorter and one[begin] == other[begin]:
        begin += 1
    while end < shorter - begin and one[-1 - end] == other[-1 - end]:
        end += 1
    begin, end = max(0, begin - 1), max(0, end - 1)
    return one[begin : len(one) - end], other[begin : len(other) - end]


def _merged(word: list[int], pair: Pair, new_id: int) -> list[int]:
    """The word with a pair joined everywhere, from the left."""
    left, right = pair
    merged: list[int] = []
    number, last = 0, len(word) - 1
    while number <= last:
        token = word[number]
        if token == left and number < last and word[number + 1] == right:
            token = new_id
            number += 1
        merged.append(token)
        number += 1
    return merged
