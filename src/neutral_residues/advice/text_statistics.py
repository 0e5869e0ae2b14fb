"""Statistics of a run's texts, from samples of their tokens.

    fertility    tokens per character, and per word if spaces separate words
    distance     Jensen-Shannon divergence of token frequencies, in bits: 0 for the same text, at
                 most 1. Small samples differ by chance, so the distance is compared with that
                 between two parts of the replay corpus and that to target text, for samples of one
                 size

Samples are random documents, each cut to `DOCUMENT_TOKENS`. "Replay" is the source text that a run
trains on. The global random state does not change.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from neutral_residues.advice.repetition import find_repetition
from neutral_residues.advice.rules import CorpusFacts, DistanceFacts, TextFacts, Use, warnings
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.training.setup import Setup

SEED = 0
DOCUMENT_TOKENS = 1024
"""Maximum number of tokens taken from a document, so that one book does not stand for a corpus."""
FERTILITY_TOKENS = 50_000
DISTANCE_TOKENS = 20_000
CHECKED_BYTES = 2 * 2**20
"""Size of the part of each corpus, from its beginning, that is searched for repetition."""
WORDS_PER_CHAR = 1 / 15
"""Spaces separate words if a text has at least this many: Finnish has 1/9, Thai and Chinese far
fewer."""


def text_warnings(setup: Setup) -> list[str]:
    """The warnings that need only the texts; no model is run."""
    data, tokenizer = setup.data, setup.tokenizer
    texts, corpora = text_facts(data, tokenizer), corpus_facts(data, tokenizer)
    return all_warnings(setup, texts, corpora, distances(data))


def all_warnings(
    setup: Setup,
    texts: Sequence[TextFacts],
    corpora: Sequence[CorpusFacts],
    far: Sequence[DistanceFacts],
) -> list[str]:
    """The warnings that follow from the facts about a run's texts (`rules.warnings`)."""
    return warnings(
        setup.config,
        texts,
        corpora,
        far,
        num_tokens=setup.num_tokens,
        is_chat_model=bool(setup.backbone_tokenizer.chat_template),
    )


def text_facts(data: RunData, tokenizer: PreTrainedTokenizerBase) -> list[TextFacts]:
    """Sizes and fertility of every text of a run: of training, evaluation and validation."""
    uses: tuple[Use, ...] = ("train", "evaluate", "validate")
    return [_facts(stream, use, tokenizer) for use in uses for stream in getattr(data, use)]


def corpus_facts(data: RunData, tokenizer: PreTrainedTokenizerBase) -> list[CorpusFacts]:
    """Repetition in the beginning of each training corpus."""
    return [
        find_repetition(stream.name, stream.role, list(_first_texts(stream, tokenizer)))
        for stream in data.train
    ]


def distances(data: RunData) -> list[DistanceFacts]:
    """Distance of each source evaluation set from replay; empty without such sets, replay or target
    text."""
    replay = [stream for stream in data.train if stream.role == "source"]
    target = [stream for stream in data.train if stream.role == "target"]
    tests = [stream for stream in data.evaluate if stream.role == "source"]
    if not (replay and target and tests):
        return []
    half = sum(stream.num_tokens for stream in replay) // 2
    size = min(DISTANCE_TOKENS, half, *(stream.num_tokens for stream in (*target, *tests)))
    ours = _sample(replay, 2 * size)
    samples = [np.concatenate(d)[:size] for d in (ours[::2], ours[1::2], _sample(target, size))]
    samples += [np.concatenate(_sample([test], size))[:size] for test in tests]
    vocabulary = 1 + max(int(sample.max()) for sample in samples)
    base, *others = (np.bincount(sample, minlength=vocabulary) / len(sample) for sample in samples)
    near, far, *found = (jensen_shannon_bits(base, other) for other in others)
    return [
        DistanceFacts(set=test.name, bits=bits, replay_bits=near, target_bits=far)
        for test, bits in zip(tests, found, strict=True)
    ]


def jensen_shannon_bits(p_V: NDArray[np.float64], q_V: NDArray[np.float64]) -> float:
    """Jensen-Shannon divergence of two distributions, in bits."""
    mean_V = (p_V + q_V) / 2

    def kl(a_V: NDArray[np.float64]) -> float:
        some = a_V > 0
        return float((a_V[some] * np.log2(a_V[some] / mean_V[some])).sum())

    return max(0.0, (kl(p_V) + kl(q_V)) / 2)


def sample_stream(
    stream: TokenStream, num_tokens: int, tokenizer: PreTrainedTokenizerBase
) -> TokenStream:
    """A new stream of about `num_tokens` tokens, from random documents of `stream`."""
    documents = _sample([stream], num_tokens)
    sizes = np.array([len(_text(document, tokenizer).encode()) for document in documents])
    ends = np.cumsum([len(document) for document in documents])
    return TokenStream(stream.name, stream.role, np.concatenate(documents), ends, sizes)


def _facts(stream: TokenStream, use: Use, tokenizer: PreTrainedTokenizerBase) -> TextFacts:
    documents = _sample([stream], FERTILITY_TOKENS)
    texts = [_text(document, tokenizer) for document in documents]
    tokens, chars = sum(map(len, documents)), max(1, sum(map(len, texts)))
    words = sum(len(text.split()) for text in texts)
    num_bytes = sum(len(text.encode()) for text in texts)
    whole = stream.num_bytes
    if stream.predicted is not None:  # `num_bytes` of chats and pairs counts only answers
        whole = stream.num_tokens * num_bytes // tokens
    return TextFacts(
        name=stream.name,
        role=stream.role,
        use=use,
        num_documents=stream.num_documents,
        num_tokens=stream.num_tokens,
        num_bytes=whole,
        tokens_per_char=tokens / chars,
        tokens_per_word=tokens / words if words >= chars * WORDS_PER_CHAR else None,
        bytes_per_char=num_bytes / chars,
    )


def _sample(streams: Sequence[TokenStream], num_tokens: int) -> list[NDArray[np.int64]]:
    """Beginnings of random documents, at least `num_tokens` tokens in all if there are as many."""
    documents = [(s, d) for s in streams for d in _candidates(s.num_documents)]
    found: list[NDArray[np.int64]] = []
    for number in np.random.default_rng(SEED).permutation(len(documents)):
        stream, document = documents[number]
        found.append(stream.document(int(document))[:DOCUMENT_TOKENS].astype(np.int64))
        num_tokens -= len(found[-1])
        if num_tokens <= 0:
            break
    return found


def _candidates(num_documents: int, most: int = 20_000) -> NDArray[np.int64]:
    """Document numbers to draw from: all, or `most` evenly spread ones."""
    return np.unique(np.linspace(0, num_documents - 1, min(num_documents, most)).astype(np.int64))


def _text(tokens: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def _first_texts(stream: TokenStream, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    left = CHECKED_BYTES
    for document in range(stream.num_documents):
        size = int(stream.document_bytes[document])
        if left <= 0:
            return
        # Of a document larger than what is left, the beginning is enough: copies begin alike.
        tokens = stream.document(document)
        part = tokens if size <= left else tokens[: max(1, len(tokens) * left // size)]
        left -= size
        yield _text(part, tokenizer)
