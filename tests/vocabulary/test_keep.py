"""What may be merged: source text keeps its tokens, whatever is learnt."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neutral_residues.errors import UserError
from neutral_residues.vocabulary.keep import may_merge, only_with, scripts_of
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.tokenizer import extended_tokenizer
from neutral_residues.vocabulary.words import count_words
from two_scripts import ENGLISH, FRENCH, UKRAINIAN, documents

CYRILLIC = frozenset({"CYRILLIC"})


@pytest.fixture(scope="module")
def counted(demo):
    return lambda texts: count_words(texts, demo, Spelling.of(demo))


@pytest.fixture(scope="module")
def ukrainian(demo, learnt, counted):
    """The demo's tokenizer with Ukrainian tokens, `keep: script`."""
    target, source = documents(UKRAINIAN), documents(ENGLISH)
    texts = {"target": counted(target), "source": counted(source)}
    allowed = may_merge("script", **texts, spelling=Spelling.of(demo))
    found = learnt(demo, target, may_merge=allowed)
    assert len(found.tokens) == 60
    return extended_tokenizer(demo, found)


LETTERS = st.characters(exclude_categories=["Cs"])


@settings(max_examples=300, deadline=None)
@given(text=st.text(LETTERS.filter(lambda char: "CYRILLIC" not in unicodedata.name(char, ""))))
def test_no_text_without_a_letter_of_the_script_changes(demo, ukrainian, text: str) -> None:
    assert ukrainian(text)["input_ids"] == demo(text)["input_ids"]


@settings(deadline=None)
@given(
    text=st.text(LETTERS, min_size=1, max_size=4),
    begin=st.integers(0, 6),
    num_bytes=st.integers(1, 8),
)
def test_what_is_part_of_other_text_is_not_only_of_the_script(text, begin, num_bytes) -> None:
    part = text.encode()[begin : begin + num_bytes]
    if not any("CYRILLIC" in unicodedata.name(char, "") for char in text):
        assert not only_with(CYRILLIC, part)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("д".encode(), True),
        (" д".encode(), True),
        (b" \xd0", True),  # every character that begins so is Cyrillic
        (b" \xe2", False),
        (b"\xb4", False),  # the end of many characters
        (b"\xb4\xd0", True),
        (b"\xb4 ", False),
        ("– «".encode(), False),
        (b"\xf0\x9f", False),
        (b"", False),
    ],
)
def test_parts_of_characters(part: bytes, expected: bool) -> None:
    assert only_with(CYRILLIC, part) is expected


def test_a_text_has_the_scripts_of_its_letters_but_not_of_quotations(demo, counted) -> None:
    spelling = Spelling.of(demo)
    assert scripts_of(counted(documents(FRENCH)), spelling) == {"LATIN"}
    quoting = [*documents(ENGLISH, number=400), "the word мир"]
    assert scripts_of(counted(quoting), spelling) == {"LATIN"}
    assert scripts_of(counted(["12 ...", "καὶ the 日本"]), spelling) == {"LATIN", "GREEK", "CJK"}


def test_one_script_is_refused_with_the_way_out(demo, counted) -> None:
    texts = {"target": counted(documents(FRENCH)), "source": counted(documents(ENGLISH))}
    with pytest.raises(UserError, match="got LATIN, which the source has too; set keep: unseen"):
        may_merge("script", **texts, spelling=Spelling.of(demo))


@pytest.mark.parametrize("seed", range(4))
def test_text_that_was_looked_at_does_not_change(demo, learnt, counted, seed: int) -> None:
    # Half of the words are in both texts, so most merges of the target would fire in the source.
    source = documents(ENGLISH + FRENCH[::2], seed=seed)
    target = documents(FRENCH, seed=seed)
    texts = {"target": counted(target), "source": counted(source)}
    allowed = may_merge("unseen", **texts, spelling=Spelling.of(demo))
    everything = extended_tokenizer(demo, learnt(demo, target))
    extended = extended_tokenizer(demo, learnt(demo, target, may_merge=allowed))
    old = demo(source)["input_ids"]
    assert everything(source)["input_ids"] != old
    assert extended(source)["input_ids"] == old
    assert extended(target)["input_ids"] != demo(target)["input_ids"]
