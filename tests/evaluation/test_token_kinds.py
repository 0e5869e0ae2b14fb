"""Kinds of tokens by their own text, and changes that a few tokens carry: both ways."""

import numpy as np
import pytest

from neutral_residues.evaluation.token_kinds import classify, concentration


def test_each_kind_by_example() -> None:
    texts = [
        "<eot>",
        "\ufffd",
        " ",
        "\n\n",
        " (",
        "…",
        " 1",
        "2nd",
        "½",
        " мир",
        "Ω",
        " Paris",
        " The",
        " the",
        " und",
    ]
    counts = [9, 9, 9, 9, 9, 9, 9, 9, 9, 1, 1, 3, 4, 40, 3]
    kinds = classify(texts, counts, special={0})
    assert kinds == [
        *(
            "end of text",
            "partial characters",
            "white space",
            "white space",
            "punctuation",
            "punctuation",
        ),
        *("digits", "digits", "digits", "other script", "other script", "names"),
        *(
            "rare words",
            "frequent words",
            "rare words",
        ),  # " The" only begins sentences: its twin is more frequent
    ]


def test_the_main_script_is_that_of_the_set() -> None:
    assert classify([" мир", " война", " peace"], [5, 5, 1])[2] == "other script"
    assert classify(["日本", "の", "カ", "Tokyo"], [5, 5, 5, 1]) == [
        "frequent words",
        "frequent words",
        "rare words",
        "other script",
    ]


def test_a_twin_counts_with_and_without_its_blank() -> None:
    assert classify([" Will", "will", " will"], [5, 3, 3])[0] != "names"
    assert classify([" Will", "will"], [5, 3])[0] == "names"


def test_vowel_signs_are_letters_and_emoji_are_not() -> None:
    assert classify(["की", "ि", " का", "❤️", "一", " and"], [5, 5, 5, 5, 1, 1]) == [
        *(
            "frequent words",
            "frequent words",
            "rare words",
            "punctuation",
            "other script",
            "other script",
        )
    ]


def test_frequent_words_make_up_half() -> None:
    kinds = classify(["a", "b", "c", "d", "e"], [10, 50, 20, 10, 10])
    assert kinds == ["rare words", "frequent words", "rare words", "rare words", "rare words"]
    assert classify(["a"], [1]) == ["frequent words"]
    assert classify([], []) == []


def zipf(types: int = 1000) -> np.ndarray:
    return (20_000 / np.arange(1, types + 1)).astype(np.int64)


def test_a_change_in_proportion_to_frequency_is_not_concentrated() -> None:
    """Half of it lies on few types, but these are half of the text."""
    counts = zipf()
    backbone = 3.0 * counts
    found = concentration(counts, backbone, 1.1 * backbone)
    assert found.tokens_share == pytest.approx(0.5, abs=0.05)
    assert not found.is_concentrated


def test_a_change_that_three_rare_tokens_carry_is_concentrated() -> None:
    counts = zipf()
    backbone = 3.0 * counts
    extended = 1.001 * backbone
    extended[[400, 500, 600]] += 200.0
    found = concentration(counts, backbone, extended)
    assert set(found.carriers) <= {400, 500, 600}
    assert found.is_concentrated


def test_what_is_nothing_is_not_explained() -> None:
    counts = zipf()
    backbone = 3.0 * counts
    assert not concentration(counts, backbone, backbone).is_concentrated
    assert concentration(counts, backbone, backbone).carriers == ()
    extended = backbone.copy()
    extended[400] += 1.0
    assert not concentration(counts, backbone, extended).is_concentrated


def test_rises_and_falls_do_not_cancel() -> None:
    counts = np.full(500, 10)
    backbone = np.full(500, 30.0)
    extended = backbone.copy()
    extended[3], extended[4] = 90.0, -10.0
    found = concentration(counts, backbone, extended)
    assert found.carriers == (3,)
    assert found.is_concentrated
