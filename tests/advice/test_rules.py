"""Warnings: each where it should be, and none where it should not."""

from typing import Any

import pytest

from neutral_residues.advice.rules import (
    CorpusFacts,
    DistanceFacts,
    RepeatedLine,
    TextFacts,
    warnings,
)
from tiny_texts import both, config, text

NUM_TOKENS = 100_000


def said(texts: list[TextFacts], corpora: Any = (), distances: Any = (), **changes: Any) -> str:
    return "\n".join(warnings(config(**changes), texts, corpora, distances, num_tokens=NUM_TOKENS))


def test_an_ordinary_run_is_not_warned_of() -> None:
    assert said(both()) == ""
    assert said(both({"tokens_per_word": 3.0})) == ""  # twice as many, not more
    assert said(both({"backbone_bits": 1.01})) == ""


def test_a_target_that_the_tokenizer_cuts_fine() -> None:
    assert "the target takes 10.00 tokens per word, the source 1.50: 6.7 times" in said(
        both({"tokens_per_word": 10.0})
    )
    by_char = both({"tokens_per_word": None, "tokens_per_char": 1.0})
    assert "the target takes 1.00 tokens per character, the source 0.25: 4.0 times" in said(by_char)


def test_new_tokens_are_suggested_once() -> None:
    costly = both({"tokens_per_word": 10.0})
    assert "neutral vocabulary prints what they save" in said(costly)
    assert "It has 500 new tokens" in said(costly, vocabulary={"size": 500})
    assert "vocabulary" not in said(both())


def test_a_chat_model_whose_answers_nobody_looks_at() -> None:
    def of(**changes: Any) -> str:
        found = {"num_tokens": NUM_TOKENS, "is_chat_model": True}
        return "\n".join(warnings(config(**changes), both(), [], [], **found))

    assert "nothing tells how many of its answers stay" in of()
    assert of(evaluation={"chat": "prompts.jsonl"}) == ""
    corpora = config().model_dump(mode="json")["data"]["train"]
    corpora[1] |= {"chat": True, "field": "messages"}
    assert of(data={"train": corpora}) == ""
    assert "chat" not in said(both())


def test_measuring_that_takes_longer_than_training() -> None:
    long = {"num_tokens": 300_000}
    # Both models on both sets, half of each window read again, and three times 20,000 tokens.
    passes = 2 * (2 * 600_000 + 3 * 2 * 20_000)
    times = f"about {passes / (3 * NUM_TOKENS):.1f} times as long as training"
    assert f"{times}; max_documents" in (line := said(both(long, long), training={"steps": 200}))
    assert "evaluation.stride_tokens=512" in line
    assert "measuring takes" not in said(both({"num_tokens": 30_000}, {"num_tokens": 30_000}))


def test_a_target_that_the_backbone_knows() -> None:
    assert "already knows the target: 1.00 bits per character" in said(both({"backbone_bits": 1.0}))
    # Two bytes a letter: half of the bits per byte are as many bits a letter.
    assert said(both({"backbone_bits": 0.9, "bytes_per_char": 2.0})) == ""
    assert said(both({"backbone_bits": None})) == ""


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_side_that_is_not_measured(role: str) -> None:
    left = [t for t in both() if not (t.use == "evaluate" and t.role == role)]
    assert f"no evaluation set has role: {role}" in said(left)


def test_nothing_is_replayed() -> None:
    left = [t for t in both() if not (t.use == "train" and t.role == "source")]
    assert said(left).startswith("no training corpus has role: source")


def test_replay_of_another_genre() -> None:
    near, far = (
        DistanceFacts(set="wiki", bits=bits, replay_bits=0.05, target_bits=0.5)
        for bits in (0.09, 0.2)
    )
    assert said(both(), distances=[near]) == ""
    assert "the source training text is far from wiki: 0.20 bits, and 0.05 within itself" in said(
        both(), distances=[far]
    )
    assert far.way_to_target == pytest.approx(1 / 3)


def test_repetition() -> None:
    corpus = CorpusFacts(
        name="web",
        role="target",
        checked_documents=9,
        checked_bytes=99,
        duplicate_share=0.06,
        repeated_line_share=0.2,
        repeated_lines=[RepeatedLine(text="Share this page", num_documents=9)],
    )
    assert said(both(), corpora=[corpus]).splitlines() == [
        "corpus web: 6 % of its documents are copies of others",
        'corpus web: 20 % of its text are lines of many documents ("Share this page" in 9)',
    ]
    little = corpus.model_copy(update={"duplicate_share": 0.04, "repeated_line_share": 0.04})
    assert said(both(), corpora=[little]) == ""


def test_text_that_is_read_too_often() -> None:
    assert (
        said(both({"num_tokens": 22_500})) == ""
    )  # 90,000 of the 100,000 tokens are target: four times
    few = both({"num_tokens": 15_000})
    assert "reads its target text 6.0 times" in said(few)
    assert "reads its source text 5.0 times" in said(both(source={"num_tokens": 2_000}))


def test_a_small_corpus_with_a_large_share_is_read_too_often() -> None:
    texts = [*both(), text("pairs", "target", num_tokens=4_500)]
    assert "times" not in said(texts)
    corpora = [
        {"name": name, "role": role, "path": f"{name}.txt"} | ({"share": share} if share else {})
        for name, role, share in (("fr", "target", [0.4, 0.8]), ("pairs", "target", [0.6, 0.2]),
                                  ("en", "source", None))
    ]  # fmt: skip
    # 36,000 of the 90,000 target tokens.
    assert "training reads corpus pairs 8.0 times" in said(texts, data={"train": corpora})
