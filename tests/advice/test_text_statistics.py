"""What the texts alone say, on texts whose numbers are known."""

import random

import numpy as np
import pytest
import torch

from neutral_residues.advice.text_statistics import (
    DOCUMENT_TOKENS,
    corpus_facts,
    distances,
    jensen_shannon_bits,
    sample_stream,
    text_facts,
)
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from tiny_run import END_OF_TEXT, SOURCE_WORDS, TARGET_WORDS, byte_tokenizer


def stream(name: str, role: str, texts: list[str]) -> TokenStream:
    tokenizer = byte_tokenizer()
    tokens = [[*tokenizer.encode(text, add_special_tokens=False), END_OF_TEXT] for text in texts]
    ends = np.cumsum([len(document) for document in tokens])
    sizes = np.array([len(text.encode()) for text in texts])
    return TokenStream(name, role, np.concatenate(tokens).astype(np.uint16), ends, sizes)


def texts(words: list[str], *, documents: int = 60, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(words, k=30)) for _ in range(documents)]


def data(replay: list[str], *tests: TokenStream) -> RunData:
    train = (stream("fr", "target", texts(TARGET_WORDS, seed=1)), stream("en", "source", replay))
    return RunData(train, tests, ())


def test_divergence_by_hand() -> None:
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon_bits(p, q) == 1.0
    assert jensen_shannon_bits(p, p) == 0.0
    # The middle is (3/4, 1/4): half of log2(4/3), and half of (log2(2/3) + log2(2)) / 2.
    half = 0.5 * np.log2(4 / 3) + 0.25 * (np.log2(2 / 3) + 1)
    assert jensen_shannon_bits(p, np.array([0.5, 0.5])) == pytest.approx(half)


def test_distance_is_0_for_like_text_and_1_for_the_target() -> None:
    like = stream("like", "source", texts(SOURCE_WORDS, seed=3))
    as_target = stream("as-target", "source", texts(TARGET_WORDS, seed=4))
    between = stream("between", "source", texts(SOURCE_WORDS + TARGET_WORDS, seed=5))
    found = {
        d.set: d for d in distances(data(texts(SOURCE_WORDS, seed=2), like, as_target, between))
    }
    assert found["like"].way_to_target < 0.05
    assert found["as-target"].way_to_target == pytest.approx(1, abs=0.05)
    assert 0.1 < found["between"].way_to_target < 0.6
    assert distances(RunData((), (like,), ())) == []


def test_fertility_by_hand() -> None:
    found = text_facts(RunData((stream("fr", "target", ["ab é"] * 5),), (), ()), byte_tokenizer())[
        0
    ]
    # Two words, four characters and five bytes in a document; six tokens with the end of text.
    assert (found.tokens_per_word, found.tokens_per_char, found.bytes_per_char) == (3.0, 1.5, 1.25)
    assert (
        text_facts(RunData((stream("zh", "target", ["好" * 40]),), (), ()), byte_tokenizer())[
            0
        ].tokens_per_word
        is None
    )


def test_copies_are_found_through_tokens() -> None:
    replay = texts(SOURCE_WORDS, documents=8)
    target, source = corpus_facts(data([*replay, replay[0], replay[1]]), byte_tokenizer())
    assert (target.duplicate_share, source.duplicate_share) == (0.0, 0.2)


def test_samples_come_from_all_over_and_know_their_bytes() -> None:
    whole = stream("en", "source", ["é" * 2000, *texts(SOURCE_WORDS, documents=200)])
    sample = sample_stream(whole, 3000, byte_tokenizer())
    assert 3000 <= sample.num_tokens < 3000 + DOCUMENT_TOKENS
    assert sample.num_documents > 5
    complete = sample_stream(stream("en", "source", ["éa", "b"]), 3000, byte_tokenizer())
    assert sorted(complete.document_bytes.tolist()) == [1, 3]
    cut = sample_stream(stream("en", "source", ["é" * 2000]), 3000, byte_tokenizer())
    assert (cut.num_tokens, cut.num_bytes) == (DOCUMENT_TOKENS, DOCUMENT_TOKENS)


def test_no_random_state_is_touched() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run = data(texts(SOURCE_WORDS), stream("like", "source", texts(SOURCE_WORDS, seed=3)))
    text_facts(run, byte_tokenizer()), corpus_facts(run, byte_tokenizer()), distances(run)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
