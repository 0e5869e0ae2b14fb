"""Repetition in a corpus: found where it is, and nothing found where there is none."""

import random

import pytest

from neutral_residues.advice.repetition import find_repetition

WORDS = [a + b for a in "bcdfghjklm" for b in ("a", "e", "i", "o", "u", "an", "en", "on")]


def document(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_nothing_is_found_in_text_that_does_not_repeat() -> None:
    found = find_repetition("en", "source", [document(seed) for seed in range(50)])
    assert (found.duplicate_share, found.repeated_line_share) == (0, 0)
    assert found.repeated_lines == []
    assert find_repetition("en", "source", []).checked_documents == 0


def test_copies_are_counted_without_their_first() -> None:
    texts = [document(seed) for seed in range(8)]
    found = find_repetition("en", "source", [*texts, texts[3].replace(" ", "  "), texts[3]])
    assert found.duplicate_share == pytest.approx(2 / 10)


def test_lines_that_occur_in_many_documents() -> None:
    footer = "All rights reserved by nobody."
    texts = [f"{document(seed)}\n{footer}" for seed in range(10)]
    texts[0] += f"\nOnly in two of them here.\n{footer}"  # twice in one document counts once
    texts[1] += "\nOnly in two of them here."
    found = find_repetition("en", "source", texts)
    assert [(line.text, line.num_documents) for line in found.repeated_lines] == [(footer, 10)]
    assert found.repeated_line_share == pytest.approx(9 * len(footer) / found.checked_bytes)
