"""Small tokenizers, and tokens that they learn."""

from collections.abc import Callable

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from neutral_residues.vocabulary.learn import NewTokens, learn
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.words import count_words
from paths import DEMO_BACKBONE
from two_scripts import SENTENCEPIECE_KINDS, sentencepiece_like, with_model


@pytest.fixture(scope="session")
def demo() -> PreTrainedTokenizerBase:
    """Byte-level BPE with 2,048 tokens, learnt from English."""
    return AutoTokenizer.from_pretrained(DEMO_BACKBONE)


@pytest.fixture(scope="session")
def ignores_merges(demo) -> PreTrainedTokenizerBase:
    """As Llama 3: a word that is a token is that token, even where no merges lead to it."""
    vocabulary = demo.get_vocab() | {"ĠÐºÑĸÑĤ": 2048, "Ġhello": 2049}
    return with_model(demo, ignore_merges=True, vocab=vocabulary)


@pytest.fixture(scope="session", params=SENTENCEPIECE_KINDS)
def sentencepiece(request) -> PreTrainedTokenizerBase:
    return sentencepiece_like(request.param)


@pytest.fixture(scope="session", params=["byte-level", "ignores merges", *SENTENCEPIECE_KINDS])
def any_bpe(request, demo, ignores_merges) -> PreTrainedTokenizerBase:
    made = {"byte-level": demo, "ignores merges": ignores_merges}
    return made.get(request.param) or sentencepiece_like(request.param)


Learnt = Callable[..., NewTokens]


@pytest.fixture(scope="session")
def learnt() -> Learnt:
    """Learns tokens, with every pair allowed unless said otherwise."""

    def learnt(
        tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: object
    ) -> NewTokens:
        spelling = Spelling.of(tokenizer)
        words = count_words(texts, tokenizer, spelling)
        first_id = 1 + max(tokenizer.get_vocab().values())
        settings = {"size": 60, "first_id": first_id, "may_merge": lambda *pair: True}
        return learn(words, spelling, **settings | options)

    return learnt
