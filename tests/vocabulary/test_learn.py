"""New merges: those that a slow training gives, and a curve that is true of the tokenizer."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neutral_residues.vocabulary.learn import FEWEST, NewToken, NewTokens, learn
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.tokenizer import extended_tokenizer
from neutral_residues.vocabulary.words import WordCounts
from two_scripts import FRENCH, UKRAINIAN, documents


def slowly(words: Counter, strings: dict[int, str], refused: set, *, size: int, first_id: int):
    """The same training: every pair counted anew before every merge."""
    words, strings, merges = dict(words), dict(strings), []
    while len(merges) < size:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        allowed = [
            (-count, pair)
            for pair, count in pairs.items()
            if count >= FEWEST
            and pair not in refused
            and strings[pair[0]] + strings[pair[1]] not in strings.values()
        ]
        if not allowed:
            break
        _, (left, right) = min(allowed)
        new_id = first_id + len(merges)
        strings[new_id] = strings[left] + strings[right]
        merges.append((strings[left], strings[right]))
        # Two words can become the same tokens.
        joined = Counter()
        for word, count in words.items():
            out = []
            for id in word:
                if out and (out[-1], id) == (left, right):
                    out[-1] = new_id
                else:
                    out.append(id)
            joined[tuple(out)] += count
        words = joined
    return merges, sum(len(word) * count for word, count in words.items())


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple),
        st.integers(1, 5),
        max_size=12,
    ),
    st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=3),
)
def test_it_is_the_slow_training(counts: dict, refused: set) -> None:
    strings = {0: "a", 1: "b", 2: "c"}
    words = WordCounts(Counter(counts), num_bytes=1, num_spaced_words=1)
    spelling = Spelling(strings)
    found = learn(
        words,
        spelling,
        size=9,
        first_id=3,
        may_merge=lambda left, right, _: (left, right) not in refused,
    )
    merges, num_tokens = slowly(words.counts, strings, refused, size=9, first_id=3)
    assert [(t.left, t.right) for t in found.tokens] == merges
    assert found.num_tokens_after[-1] == num_tokens
    assert all(t.token == "".join(strings[id] for id in t.pieces) for t in found.tokens)


@pytest.mark.parametrize("words", [UKRAINIAN, FRENCH])
def test_the_curve_is_what_the_tokenizer_then_does(any_bpe, learnt, words) -> None:
    # Words alone too: where tokens go before merges, some of them are tokens then.
    texts = [*documents(words), *words]
    found = learnt(any_bpe, texts)
    for size in (0, 1, 9, len(found.tokens)):
        backend = extended_tokenizer(any_bpe, found.first(size)).backend_tokenizer
        tokens = sum(len(e.ids) for e in backend.encode_batch(texts, add_special_tokens=False))
        assert tokens == found.num_tokens_after[size]
    assert found.num_tokens_after[-1] < 0.8 * found.num_tokens


def test_pieces_are_the_tokens_that_it_had(any_bpe, learnt) -> None:
    spelling = Spelling.of(any_bpe)
    for token in learnt(any_bpe, documents(UKRAINIAN)).tokens:
        assert spelling.text_of_word(token.pieces) == token.text


def test_no_token_is_made_twice_and_none_occurs_once(demo, learnt) -> None:
    found = learnt(demo, documents(UKRAINIAN), size=10_000)
    names = [token.token for token in found.tokens]
    assert len({*names, *demo.get_vocab()}) == len(names) + len(demo.get_vocab())
    assert min(token.saved for token in found.tokens) >= FEWEST
    assert len(names) < 10_000


def curve(saved: list[int], num_tokens: int) -> NewTokens:
    tokens = tuple(NewToken("ab", "a", "b", "ab", (0, 1), each) for each in saved)
    return NewTokens(0, tokens, num_tokens, num_words=1, num_bytes=1)


def test_the_recommended_size_is_where_the_curve_flattens() -> None:
    # 1,000 merges save 30 % of the tokens, then each thousand 1 %.
    assert curve([300] * 1000 + [10] * 3000, 1_000_000).recommended_size == 1000
    assert curve([300] * 500, 1_000_000).recommended_size == 500  # not flat yet
    assert curve([300] * 100 + [1] * 200, 1_000_000).recommended_size == 100
    assert curve([], 1_000_000).recommended_size == 0
