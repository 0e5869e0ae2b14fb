"""Facts about a run's texts, and the rules that turn them into warnings.

Each threshold names the measurement or paper behind it; "LAB" is LAB.md of this project. "Replay"
is the source text that a run trains on.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from pydantic import Field

from neutral_residues.config.data import DataSettings, Role
from neutral_residues.config.run import RunConfig
from neutral_residues.results.base import Part

COSTLY = 2.0
"""Warn if target text takes more than this many times the tokens of source text."""
REPETITION = 0.05
"""Warn if a larger share of a corpus is repeated; common corpora have 3 to 14 %
(arXiv 2107.06499)."""
FAR = 2.0
"""Warn if a source set is more than this many times as far from replay as one part of replay from
another (LAB: held-out novels are 1.3 times as far, Wikipedia 4.6 and PubMed 6.6 times)."""
EPOCHS = 4
"""Warn if text is read more often. Up to four times, reading it again teaches nearly as much as new
text (Muennighoff 2023, arXiv 2305.16264)."""
LONG_MEASURING, MEASURED_TOKENS = 0.25, 2**20
"""Warn if measuring takes this share of the time of training or more, and reads at least this many
tokens."""

Use = Literal["train", "evaluate", "validate"]


class TextFacts(Part):
    """Size and tokens of one text of the run."""

    name: str
    role: Role
    """source: text that the backbone knows. target: text that it should learn."""
    use: Use
    num_documents: int
    num_tokens: int
    """Tokens, end-of-text included."""
    num_bytes: int
    """UTF-8 bytes."""
    tokens_per_char: float
    tokens_per_word: float | None
    """Null if spaces do not separate words."""
    bytes_per_char: float
    backbone_bits: float | None = None
    """Bits per byte of the backbone on a sample; null if it was not run."""

    @property
    def bits_per_char(self) -> float | None:
        """The backbone's bits per character, to compare scripts whose letters take one to three
        bytes."""
        return None if self.backbone_bits is None else self.backbone_bits * self.bytes_per_char


class RepeatedLine(Part):
    """A line that occurs in many documents, cut to 100 characters."""

    text: str
    num_documents: int


class CorpusFacts(Part):
    """Repetition in a training corpus."""

    name: str
    role: Role
    checked_documents: int
    """Number of documents that were searched, from the beginning of the corpus."""
    checked_bytes: int
    duplicate_share: float = Field(ge=0, le=1)
    """Share of documents that are copies of earlier ones."""
    repeated_line_share: float = Field(ge=0, le=1)
    """Share of bytes in lines that occur in three documents or more, without the first
    occurrence."""
    repeated_lines: list[RepeatedLine]
    """The most repeated of these lines."""


class DistanceFacts(Part):
    """Distance between replay and a source evaluation set: Jensen-Shannon divergence of token
    frequencies, in bits."""

    set: str
    bits: float
    """From replay to this set."""
    replay_bits: float
    """From one part of replay to another, for comparison: the effect of chance."""
    target_bits: float
    """From replay to target text, for comparison."""

    @property
    def way_to_target(self) -> float:
        """Position of the set between replay (0) and target text (1)."""
        span = self.target_bits - self.replay_bits
        return max(0.0, (self.bits - self.replay_bits) / span) if span > 0 else math.inf


def warnings(
    config: RunConfig,
    texts: Sequence[TextFacts],
    corpora: Sequence[CorpusFacts],
    distances: Sequence[DistanceFacts],
    *,
    num_tokens: int,
    is_chat_model: bool = False,
) -> list[str]:
    """The warnings that follow from the facts, a sentence each.

    Args:
        num_tokens: number of tokens in training, over all ranks.
        is_chat_model: whether the backbone's tokenizer has a chat template.
    """
    found = [*_not_measured(texts), *_costly_target(config, texts), *_known_target(texts)]
    found += [line for corpus in corpora for line in _repetition(corpus)]
    found += [
        f"the source training text is far from {d.set}: {d.bits:.2f} bits, and {d.replay_bits:.2f}"
        f" within itself. Forgetting there can be larger; source text like {d.set} in data.train"
        " would protect it"
        for d in distances
        if d.bits > FAR * d.replay_bits
    ]
    found += _read_too_often(config.data, texts, num_tokens)
    found += _unseen_chats(config) if is_chat_model else []
    return [*found, *_long_measuring(config, texts, num_tokens)]


def _unseen_chats(config: RunConfig) -> list[str]:
    """A warning if chats are neither replayed nor measured. Two extensions that met none kept all
    of 20 answers of one chat model (LAB, "a gate that learns how texts begin")."""
    if config.evaluation.chat or any(it.chat and it.role == "source" for it in config.data.train):
        return []
    return [
        "the backbone answers chats, and nothing tells how many of its answers stay:"
        " evaluation.chat names prompts, and counts them. If too few do, calibrate the extension"
        " (neutral calibrate), or give a source corpus with chat: true"
    ]


def _long_measuring(config: RunConfig, texts: Sequence[TextFacts], num_tokens: int) -> list[str]:
    """A warning if measuring takes long. The unit of cost is a token's forward pass; a training
    step takes about three for each token."""
    validate, evaluate = (
        [text.num_tokens for text in texts if text.use == use] for use in ("validate", "evaluate")
    )
    overlap = config.context_tokens / config.stride_tokens
    measured = overlap * config.tokens_to_measure(validate or evaluate, evaluate)
    share = measured / (3 * num_tokens)
    if share < LONG_MEASURING or measured < MEASURED_TOKENS:
        return []
    ways = ["max_documents in data.evaluate"]
    if overlap > 1:
        ways.append(f"evaluation.stride_tokens={config.context_tokens}")
    if config.num_measurements > 2:
        ways.append("a larger training.evaluate_every")
    return [
        f"measuring takes about {share:.1f} times as long as training; {', or '.join(ways)}"
        " shortens it"
    ]


def _read_too_often(
    data: DataSettings, texts: Sequence[TextFacts], num_tokens: int
) -> Iterator[str]:
    for role, part in (("target", 1 - data.source_share), ("source", data.source_share)):
        found = [text for text in texts if text.use == "train" and text.role == role]
        # Without shares, corpora are mixed by their size, so all are read equally often.
        whole = [(f"its {role} text", sum(text.num_tokens for text in found), 1.0)]
        own = [
            (f"corpus {text.name}", text.num_tokens, statistics.fmean(data.shares[text.name]))
            for text in found
            if text.name in data.shares
        ]
        for what, there, share in own or whole:
            epochs = num_tokens * part * share / there if there else 0.0
            if epochs > EPOCHS:
                yield (
                    f"training reads {what} {epochs:.1f} times; beyond {EPOCHS} times reading"
                    " again teaches little (arXiv 2305.16264): give more text or fewer steps"
                )


def _costly_target(config: RunConfig, texts: Sequence[TextFacts]) -> Iterator[str]:
    cost = token_cost(texts)
    if cost is not None and cost.times > COSTLY:
        size = config.vocabulary.size
        remedy = (
            f"It has {size:,} new tokens (vocabulary.size); more may help"
            if size
            else "New tokens (vocabulary.size) lift it: neutral vocabulary prints what they save"
        )
        yield (
            f"the target takes {cost.target:.2f} tokens per {cost.unit}, the source"
            f" {cost.source:.2f}: {cost.times:.1f} times as many. The context holds less text, time"
            f" grows as much, and the same text teaches less (LAB, Ukrainian). {remedy}"
        )


def _known_target(texts: Sequence[TextFacts]) -> Iterator[str]:
    bits = bits_of_sides(texts)
    if bits is not None and bits.target <= bits.source:
        yield (
            f"the backbone already knows the target: {bits.target:.2f} bits per character, no"
            f" more than on source text ({bits.source:.2f}). Expect little to learn"
        )


class Sides(NamedTuple):
    """A mean over target texts and one over source texts, in `unit`."""

    target: float
    source: float
    unit: str

    @property
    def times(self) -> float:
        """Target divided by source."""
        return self.target / self.source


def token_cost(texts: Sequence[TextFacts]) -> Sides | None:
    """Tokens per word, or per character if spaces do not separate words in some text; None if
    target or source text is missing."""
    target, source = _of_role(texts, "target"), _of_role(texts, "source")
    if not (target and source):
        return None
    by_word = all(text.tokens_per_word is not None for text in (*target, *source))
    of_target, of_source = (
        _mean([text.tokens_per_word if by_word else text.tokens_per_char for text in side])
        for side in (target, source)
    )
    return Sides(of_target, of_source, unit="word" if by_word else "character")


def bits_of_sides(texts: Sequence[TextFacts]) -> Sides | None:
    """The backbone's bits per character; None unless it was run on target and source text."""
    sides = [[t.bits_per_char for t in _of_role(texts, role)] for role in ("target", "source")]
    target, source = ([bits for bits in side if bits is not None] for side in sides)
    return Sides(_mean(target), _mean(source), unit="character") if target and source else None


def _not_measured(texts: Sequence[TextFacts]) -> Iterator[str]:
    lost = {"source": "what is forgotten", "target": "what is learnt"}
    roles = {text.role for text in texts if text.use == "evaluate"}
    for role, what in lost.items():
        if role not in roles:
            where = "add one to data.evaluate"
            yield f"no evaluation set has role: {role}, so {what} is not measured; {where}"
    if not any(text.use == "train" and text.role == "source" for text in texts):
        what = "no source text is replayed and nothing protects it"
        do = "path: self has the backbone write some"
        yield f"no training corpus has role: source, so {what}; {do}"


def _repetition(corpus: CorpusFacts) -> Iterator[str]:
    if corpus.duplicate_share > REPETITION:
        share = f"{100 * corpus.duplicate_share:.0f} %"
        yield f"corpus {corpus.name}: {share} of its documents are copies of others"
    if corpus.repeated_line_share > REPETITION:
        share = f"{100 * corpus.repeated_line_share:.0f} %"
        lines = "; ".join(f'"{it.text}" in {it.num_documents}' for it in corpus.repeated_lines)
        yield f"corpus {corpus.name}: {share} of its text are lines of many documents ({lines})"


def _of_role(texts: Sequence[TextFacts], role: str) -> list[TextFacts]:
    """Training texts of that role; if there are none, evaluation sets."""
    for use in ("train", "evaluate"):
        if found := [text for text in texts if text.role == role and text.use == use]:
            return found
    return []


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
