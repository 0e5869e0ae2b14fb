"""Cloze items: the same each time, whole, within the context, and with wrong answers that length
does not give away."""

import random
from typing import Any

import numpy as np
import pytest

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.cloze import NUM_CHOICES, SENTENCE, cloze_items
from tiny_run import END_OF_TEXT, SOURCE_WORDS, byte_tokenizer


def stream(texts: list[str]) -> TokenStream:
    tokenizer = byte_tokenizer()
    rows = [[*tokenizer(text)["input_ids"], END_OF_TEXT] for text in texts]
    ends = np.cumsum([len(row) for row in rows])
    tokens = np.array([token for row in rows for token in row], dtype=np.uint16)
    return TokenStream(
        "en", "source", tokens, ends, np.array([len(text.encode()) for text in texts])
    )


def documents(count: int = 40) -> list[str]:
    """Each document has words of its own number, so that an answer shows where it is from."""
    generator = random.Random(3)
    return [
        " ".join(
            f"{' '.join(generator.choices(SOURCE_WORDS, k=generator.randint(6, 18)))}"
            f" d{number}s{sentence}."
            for sentence in range(20)
        )
        for number in range(count)
    ]


def number_of(sentence: str) -> tuple[int, int]:
    document, _, place = sentence.strip().rsplit(" ", 1)[1].strip("d.").partition("s")
    return int(document), int(place)


def items(context_tokens: int = 1000, count: int = 40) -> list[dict[str, Any]]:
    return cloze_items(stream(documents(count)), byte_tokenizer(), context_tokens=context_tokens)


def test_the_right_answer_follows_and_the_others_are_from_elsewhere() -> None:
    texts, found = documents(), items()
    assert len(found) > 100
    for item in found:
        right = item["choices"][item["answer"]]
        document, place = number_of(right)
        assert item["context"] + right in texts[document]
        assert number_of(item["context"]) == (document, place - 1)
        assert document not in {
            number_of(c)[0] for i, c in enumerate(item["choices"]) if i != item["answer"]
        }
        assert len(set(item["choices"])) == NUM_CHOICES
        lengths = [len(choice) for choice in item["choices"]]
        assert max(lengths) - min(lengths) <= 12
        assert all(choice.startswith(" ") for choice in item["choices"])
    shares = np.bincount([item["answer"] for item in found]) / len(found)
    assert shares.min() > 0.15


def test_the_same_each_time_and_no_sentence_is_asked_twice() -> None:
    found = items()
    assert found == items()
    asked = [item["choices"][item["answer"]] for item in found]
    assert len(set(asked)) == len(asked)


def test_paragraph_and_answer_fit_the_context() -> None:
    tokenizer = byte_tokenizer()
    found = items(context_tokens=220)
    for item in found:
        longest = max(len(tokenizer(choice)["input_ids"]) for choice in item["choices"])
        assert len(tokenizer(item["context"])["input_ids"]) + longest <= 220
    assert any(
        len(item["context"]) < 150 for item in found
    )  # some paragraphs did lose their beginning


def test_a_set_too_small_is_one_line() -> None:
    for texts in (documents(1), ["no sentences at all " * 30] * 9):
        with pytest.raises(UserError, match="no items in cloze-en") as caught:
            cloze_items(stream(texts), byte_tokenizer(), context_tokens=500)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("He came. “Why?” she said! No…", ["He came.", "“Why?”", "she said!", "No…"]),
        ("Il vient.\n— Oui, dit-il.", ["Il vient.", "— Oui, dit-il."]),
        ("他来了。她说：「好！」走吧", ["他来了。", "她说：「好！」", "走吧"]),
        ("वह आया। ठीक है।", ["वह आया।", "ठीक है।"]),
        ("Pi is 3.14 or so. Yes", ["Pi is 3.14 or so.", "Yes"]),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert SENTENCE.findall(text) == sentences
