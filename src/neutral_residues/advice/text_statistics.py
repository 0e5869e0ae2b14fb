"""What can be said of the texts of a run before it starts, without its model or with one short look
at it.

Texts are looked at through their tokens: documents drawn at random (seeded, each cut to
`DOCUMENT_TOKENS`), turned back into text. Sizes:

    fertility    tokens per word, where blanks separate words, else per sign
    distance     Jensen-Shannon divergence of how often each token occurs, in bits: 0 for the same text, at most 1.
                 Small samples differ by chance, so it is held against two parts of the replay corpus (0 on the scale)
                 and against the target (1 on the scale), all in samples of one size

"Replay" is training text of the source side. Nothing here draws from torch's or Python's random
state.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neutral_residues.advice.repetition import check_corpus, separates_words
from neutral_residues.advice.rules import (
    CorpusFacts,
    DistanceFacts,
    RepeatedLine,
    TextFacts,
    Use,
    warnings,
)
from neutral_residues.config.run import RunConfig
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.training.setup import RunData, tokens_per_step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED = 0
DOCUMENT_TOKENS = 1024
"""So much of a document is looked at: one book must not stand for a corpus."""
FERTILITY_TOKENS = 50_000
DISTANCE_TOKENS = 20_000
CHECKED_BYTES = 2 * 2**20
"""So much text of each corpus, from its beginning, is searched for repetition: about a second."""


def text_warnings(
    config: RunConfig, data: RunData, tokenizer: "PreTrainedTokenizerBase"
) -> list[str]:
    """What the texts alone warn of: no model is needed."""
    texts, corpora = text_facts(data, tokenizer), corpus_facts(data, tokenizer)
    return warnings(
        config, texts, corpora, distances(data), tokens_per_step=tokens_per_step(config)
    )


def text_facts(data: RunData, tokenizer: "PreTrainedTokenizerBase") -> list[TextFacts]:
    """Sizes and fertility of every text of a run."""
    uses: tuple[tuple[Use, tuple[TokenStream, ...]], ...] = (
        ("train", data.train),
        ("evaluate", data.evaluate),
        ("validate", data.validate),
    )
    return [_facts(stream, use, tokenizer) for use, streams in uses for stream in streams]


def corpus_facts(data: RunData, tokenizer: "PreTrainedTokenizerBase") -> list[CorpusFacts]:
    """What each training corpus holds twice."""
    found = []
    for stream in data.train:
        check = check_corpus(list(_first_texts(stream, tokenizer)))
        found.append(
            CorpusFacts(
                name=stream.name,
                role=stream.role,
                checked_documents=check.num_documents,
                checked_bytes=check.num_bytes,
                duplicate_share=check.duplicate_share,
                near_duplicate_share=check.near_duplicate_share,
                boilerplate_share=check.boilerplate_share,
                boilerplate=[
                    RepeatedLine(text=line[:100], num_documents=n)
                    for line, n in check.most_repeated
                ],
            )
        )
    return found


def distances(data: RunData) -> list[DistanceFacts]:
    """How far the replay corpora are from each source set; empty without replay, target or source
    sets."""
    replay = [stream for stream in data.train if stream.role == "source"]
    target = [stream for stream in data.train if stream.role == "target"]
    tests = [stream for stream in data.evaluate if stream.role == "source"]
    if not (replay and target and tests):
        return []
    size = min(
        DISTANCE_TOKENS,
        sum(s.num_tokens for s in replay) // 2,
        *(s.num_tokens for s in (*target, *tests)),
    )
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
    stream: TokenStream, num_tokens: int, tokenizer: "PreTrainedTokenizerBase"
) -> TokenStream:
    """About so many tokens of a stream, from documents all over it, as a stream of its own."""
    documents = _sample([stream], num_tokens)
    sizes = [len(_text(document, tokenizer).encode()) for document in documents]
    ends = np.cumsum([len(document) for document in documents])
    return TokenStream(
        stream.name, stream.role, np.concatenate(documents), ends, np.array(sizes, dtype=np.int64)
    )


def _facts(stream: TokenStream, use: Use, tokenizer: "PreTrainedTokenizerBase") -> TextFacts:
    documents = _sample([stream], FERTILITY_TOKENS)
    texts = [_text(document, tokenizer) for document in documents]
    tokens, signs = sum(map(len, documents)), max(1, sum(map(len, texts)))
    words = sum(len(text.split()) for text in texts) if separates_words(texts) else 0
    return TextFacts(
        name=stream.name,
        role=stream.role,
        use=use,
        num_documents=stream.num_documents,
        num_tokens=stream.num_tokens,
        num_bytes=stream.num_bytes,
        tokens_per_sign=tokens / signs,
        tokens_per_word=tokens / words if words else None,
        bytes_per_sign=sum(len(text.encode()) for text in texts) / signs,
    )


def _sample(streams: Sequence[TokenStream], num_tokens: int) -> list[NDArray[np.int64]]:
    """Beginnings of documents drawn at random from all streams, until there are so many tokens; at
    least one."""
    places = np.array(
        [(s, d) for s, stream in enumerate(streams) for d in _draw(stream.num_documents)]
    )
    found: list[NDArray[np.int64]] = []
    for s, d in places[np.random.default_rng(SEED).permutation(len(places))]:
        found.append(_document(streams[s], int(d))[:DOCUMENT_TOKENS].astype(np.int64))
        num_tokens -= len(found[-1])
        if num_tokens <= 0:
            break
    return found


def _draw(num_documents: int, most: int = 20_000) -> NDArray[np.int64]:
    """Places to draw from: all, or of a large corpus so many, evenly spread."""
    return np.unique(np.linspace(0, num_documents - 1, min(num_documents, most)).astype(np.int64))


def _document(stream: TokenStream, document: int) -> NDArray[np.int64]:
    start = int(stream.document_ends[document - 1]) if document else 0
    return stream.tokens[start : int(stream.document_ends[document])]


def _text(tokens: NDArray[np.int64], tokenizer: "PreTrainedTokenizerBase") -> str:
    return str(tokenizer.decode(tokens.tolist(), skip_special_tokens=True))


def _first_texts(stream: TokenStream, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    left = CHECKED_BYTES
    for document in range(stream.num_documents):
        size = int(stream.document_bytes[document])
        if left <= 0:
            return
        # Of a document larger than what is left the beginning is enough: a copy of it begins alike.
        whole = _document(stream, document)
        part = whole if size <= left else whole[: max(1, len(whole) * left // size)]
        left -= size
        yield _text(part, tokenizer)
