"""Repetition in a corpus: found where it is, and nothing found where there is none."""

import random

import pytest

from neutral_residues.advice.repetition import check_corpus, separates_words

WORDS = [a + b for a in "bcdfghjklm" for b in ("a", "e", "i", "o", "u", "an", "en", "on")]


def document(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_nothing_is_found_in_text_that_does_not_repeat() -> None:
    found = check_corpus([document(seed) for seed in range(50)])
    assert (found.duplicate_share, found.near_duplicate_share, found.boilerplate_share) == (0, 0, 0)
    assert found.most_repeated == ()
    assert check_corpus([]).num_documents == 0


def test_copies_and_near_copies_are_counted_apart_and_once() -> None:
    texts = [document(seed) for seed in range(8)]
    changed = texts[0].split()
    changed[30:33] = ["quite", "other", "words"]
    little = " ".join(texts[1].split()[:20]) + " " + document(99, 60)  # 8 of 68 n-grams are old
    found = check_corpus([*texts, texts[3].replace(" ", "  "), " ".join(changed), little])
    assert found.duplicate_share == pytest.approx(1 / 11)
    assert found.near_duplicate_share == pytest.approx(1 / 11)


def test_a_document_that_repeats_itself_is_no_copy() -> None:
    assert check_corpus([" ".join([document(1, 20)] * 5), document(2)]).near_duplicate_share == 0


def test_lines_that_stand_in_many_documents() -> None:
    footer = "All rights reserved by nobody."
    texts = [f"{document(seed)}\n{footer}" for seed in range(10)]
    texts[0] += f"\nOnly in two of them here.\n{footer}"  # twice in one document counts once
    texts[1] += "\nOnly in two of them here."
    found = check_corpus(texts)
    assert found.most_repeated == ((footer, 10),)
    assert found.boilerplate_share == pytest.approx(9 * len(footer) / found.num_bytes)


def test_text_without_blanks_goes_by_signs() -> None:
    generator = random.Random(0)
    texts = ["".join(chr(0x4E00 + generator.randrange(3000)) for _ in range(200)) for _ in range(6)]
    assert not separates_words(texts)
    assert separates_words([document(1)])
    found = check_corpus([*texts, texts[2][:120] + texts[2][125:]])
    assert (found.duplicate_share, found.near_duplicate_share) == (0, pytest.approx(1 / 7))
