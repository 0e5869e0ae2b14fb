"""Advice before a run: what was found, what it warns of, what it recommends and why. Numbers in,
sentences out.

No number here is invented: each threshold and each recommendation names the measurement or the
paper behind it, "LAB" being LAB.md of this project. `text_facts.py` and `probe.py` measure;
`advise.py` calls and prints.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from neutral_residues.config.run import Role, RunConfig
from neutral_residues.methods.table import RECIPE_WIDTH, find_method, learning_rate
from neutral_residues.results.record import Part

COSTLY = 2.0
"""A target that costs so many times the tokens of the source is warned of."""
REPETITION = 0.05
"""A share of the corpus above which repetition is warned of; common corpora have 3 to 14 % (arXiv
2107.06499)."""
FAR = 2.0
"""A source set that diverges from replay so many times as much as replay from itself is of another
genre (LAB: held-out novels do 1.3 times, Wikipedia 4.6 and PubMed 6.6 times)."""
READINGS = 4
"""So often a text can be read nearly as if it were new (Muennighoff et al. 2023, arXiv
2305.16264)."""
MOST_DOUBLINGS = 4
"""A curve is not continued further than this beyond the probe."""
TUNED = {
    "neutral": (5e-3, "2.5e-3 to 1e-2"),
    "adapter": (1e-2, "1.25e-3 to 2e-2"),
    "lora": (6e-3, "7.5e-4 to 1.2e-2"),
    "finetune": (4e-3, "2.5e-4 to 4e-3"),
}
"""Learning rates that validation chose, and from which (LAB, French, width 192)."""


Use = Literal["train", "evaluate", "validate"]


class TextFacts(Part):
    """One text of the run under the backbone's tokenizer."""

    name: str
    """As in the run file."""
    role: Role
    """source: what the backbone knows. target: what it is to learn."""
    use: Use
    """What it is for."""
    num_documents: int
    """Documents."""
    num_tokens: int
    """Tokens, end-of-text included."""
    num_bytes: int
    """UTF-8 bytes."""
    tokens_per_sign: float
    """Tokens per character."""
    tokens_per_word: float | None
    """Tokens per word; null where blanks do not separate words."""
    bytes_per_sign: float
    """UTF-8 bytes per character."""
    backbone_bits: float | None = None
    """Bits per byte of the backbone on a sample; null where it was not run."""

    @property
    def bits_per_sign(self) -> float | None:
        """Compares scripts, whose letters take one byte or three."""
        return None if self.backbone_bits is None else self.backbone_bits * self.bytes_per_sign


class RepeatedLine(Part):
    """A line that stands in many documents."""

    text: str
    """Its beginning."""
    num_documents: int
    """In how many."""


class CorpusFacts(Part):
    """What a training corpus holds twice."""

    name: str
    """As in the run file."""
    role: Role
    """Its side."""
    checked_documents: int
    """How many documents, from the beginning, were looked at."""
    checked_bytes: int
    """UTF-8 bytes of these."""
    duplicate_share: float = Field(ge=0, le=1)
    """Share of documents that are copies of earlier ones."""
    near_duplicate_share: float = Field(ge=0, le=1)
    """Share of documents half of which stands in earlier ones."""
    boilerplate_share: float = Field(ge=0, le=1)
    """Share of bytes in lines that stand in three documents or more, the first time not counted."""
    boilerplate: list[RepeatedLine]
    """The most repeated of these lines."""


class DistanceFacts(Part):
    """How far replay is from a source set: Jensen-Shannon divergence of their tokens' frequencies,
    in bits."""

    set: str
    """Name of the source set."""
    bits: float
    """Replay to this set."""
    replay_bits: float
    """One part of replay to another: what chance alone gives."""
    target_bits: float
    """Replay to the target."""

    @property
    def way_to_target(self) -> float:
        """0: like another part of replay. 1: as far as the target."""
        span = self.target_bits - self.replay_bits
        return max(0.0, (self.bits - self.replay_bits) / span) if span > 0 else math.inf


class ProbeFacts(Part):
    """What a few real steps showed, and what they say of the whole run."""

    steps: int
    """How many steps."""
    step_seconds: float | None
    """Median time of one, the first ones left out."""
    peak_memory_bytes: int | None
    """Peak of the process (or of the accelerator): the estimate for the run."""
    run_seconds: float | None
    """Estimated wall time of the whole run."""
    target_bits: list[tuple[int, float]]
    """(step, bits per byte), mean over the target sets that are measured on the way."""
    reached_bits: float | None
    """At the end of the probe: the run will reach at least this unless its learning rate is too
    high."""
    continued_bits: float | None
    """If every further doubling of the steps gained as much as the probe's last one; null beyond
    four doublings, and where the tokenizer cuts the target so fine that learning stops early."""


class Recommendation(Part):
    """One setting, what it should be, and why."""

    setting: str
    """Its key in the run file."""
    value: float
    """What it should be."""
    now: float
    """What it is in the run."""
    reason: str
    """Why."""


class Advice(Part):
    """All of it."""

    format: Literal["neutral-residues/advice"] = "neutral-residues/advice"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    texts: list[TextFacts]
    """Every text of the run."""
    corpora: list[CorpusFacts]
    """Every training corpus."""
    distances: list[DistanceFacts]
    """Every source set."""
    probe: ProbeFacts | None = None
    """None where no step was tried."""
    warnings: list[str]
    """What to look at before spending anything."""
    recommendations: list[Recommendation]
    """What to set."""


def warnings(
    config: RunConfig,
    texts: Sequence[TextFacts],
    corpora: Sequence[CorpusFacts],
    distances: Sequence[DistanceFacts],
    *,
    tokens_per_step: int,
) -> list[str]:
    """What to look at before anything is spent, each in a sentence."""
    found = [*_not_measured(texts), *costly_target(texts), *_known_target(texts)]
    found += [line for corpus in corpora for line in _repetition(corpus)]
    for d in distances:
        if d.bits > FAR * d.replay_bits:
            found.append(
                f"replay is far from {d.set}: {d.bits:.2f} bits, and {d.replay_bits:.2f} from"
                " itself. Forgetting there can be larger (LAB: +0.3 % on English like replay, +0.7"
                f" and +0.9 % on PubMed and Wikipedia); source text like {d.set} in data.train"
                " would protect it"
            )
    for role, readings in readings_by_role(config, texts, tokens_per_step=tokens_per_step).items():
        if readings > READINGS:
            found.append(
                f"the run reads its {role} text {readings:.1f} times; beyond {READINGS} times"
                " reading again teaches little (arXiv 2305.16264): give more text or fewer steps"
            )
    return found


def readings_by_role(
    config: RunConfig, texts: Sequence[TextFacts], *, tokens_per_step: int
) -> dict[Role, float]:
    """How often training reads the text of either side, on average over its corpora."""
    share = config.data.source_share
    found: dict[Role, float] = {}
    sides: tuple[tuple[Role, float], ...] = (("target", 1 - share), ("source", share))
    for role, part in sides:
        there = sum(text.num_tokens for text in texts if text.use == "train" and text.role == role)
        if there and part:
            found[role] = config.training.steps * tokens_per_step * part / there
    return found


def recommendations(
    config: RunConfig, texts: Sequence[TextFacts], *, tokens_per_step: int, hidden_size: int
) -> list[Recommendation]:
    """Budget, share of source text, learning rate and steps, each with its reason."""
    method = find_method(config.method)
    found = []
    if method.has_budget:
        reason = (
            "the budget of every comparison in LAB, as in the paper; no other was measured here"
        )
        if costly_target(texts):
            reason += ". More of it is no help where a vocabulary is missing (LAB, Ukrainian)"
        found.append(_recommend("budget", 0.2, config.budget, reason))
    if any(text.use == "train" and text.role == "source" for text in texts):
        reason = (
            "LAB measured every method at 0.1, where neutral residues forget under 1 % on three"
            " English texts"
        )
        found.append(_recommend("data.source_share", 0.1, config.data.source_share, reason))
    rate = learning_rate(config, hidden_size=hidden_size)
    if method.learning_rate is not None:
        found.append(_rate(config, rate, hidden_size))
    found += _steps(config, texts, tokens_per_step)
    return found


def continued(curve: Sequence[tuple[int, float]], *, steps: int) -> float | None:
    """A curve's last point, moved on as if every further doubling gained what the last one did.

    None with fewer than two points after the start, without a gain, or beyond `MOST_DOUBLINGS`.
    """
    points = [(step, bits) for step, bits in curve if step > 0][-2:]
    if len(points) < 2:
        return None
    (before, high), (last, low) = points
    doublings = math.log2(steps / last)
    if not 0 <= doublings <= MOST_DOUBLINGS or low >= high:
        return None
    return low - (high - low) / math.log2(last / before) * doublings


def costly_target(texts: Sequence[TextFacts]) -> list[str]:
    """A warning if the target costs far more tokens than the source does; else none."""
    target, source = _of_role(texts, "target"), _of_role(texts, "source")
    if not (target and source):
        return []
    unit = (
        "word" if all(text.tokens_per_word is not None for text in (*target, *source)) else "sign"
    )
    costs = [
        _mean([t.tokens_per_word if unit == "word" else t.tokens_per_sign for t in side])
        for side in (target, source)
    ]
    times = costs[0] / costs[1]
    if times <= COSTLY:
        return []
    return [
        f"the target costs {costs[0]:.2f} tokens a {unit}, the source {costs[1]:.2f}: {times:.1f}"
        " times as many. The context holds so much less text, and time grows as much. Where only"
        " bytes are left, frozen embeddings stop learning early (LAB, Ukrainian: 5.0 bits per"
        " byte, fine-tuning 2.1): a vocabulary is missing, not width"
    ]


def _not_measured(texts: Sequence[TextFacts]) -> list[str]:
    lost = {
        "source": "what is forgotten, and how far replay is from it, cannot be said",
        "target": "what is learnt cannot be said",
    }
    roles = {text.role for text in texts if text.use == "evaluate"}
    found = [
        f"no evaluation set has role: {role}, so {what}; add one to data.evaluate"
        for role, what in lost.items()
        if role not in roles
    ]
    if not any(text.use == "train" and text.role == "source" for text in texts):
        found.append(
            "no training corpus has role: source, so nothing of the source is replayed and nothing"
            " protects it"
        )
    return found


def _known_target(texts: Sequence[TextFacts]) -> list[str]:
    """A warning if the backbone reads the target no worse than the source. By sign: scripts differ
    in bytes."""
    sides = [[t.bits_per_sign for t in _of_role(texts, role)] for role in ("target", "source")]
    target, source = ([bits for bits in side if bits is not None] for side in sides)
    if not (target and source) or _mean(target) > _mean(source):
        return []
    return [
        f"the backbone already knows the target: {_mean(target):.2f} bits a sign, no more than on"
        f" source text ({_mean(source):.2f}). Expect little to learn"
    ]


def _of_role(texts: Sequence[TextFacts], role: str) -> list[TextFacts]:
    """Training text of that side; where there is none, what is evaluated on."""
    for use in ("train", "evaluate"):
        if found := [text for text in texts if text.role == role and text.use == use]:
            return found
    return []


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _repetition(corpus: CorpusFacts) -> list[str]:
    kinds = {
        "of its documents are copies of others": corpus.duplicate_share,
        "of its documents are nearly copies of others": corpus.near_duplicate_share,
        "of its text are lines that stand in many documents": corpus.boilerplate_share,
    }
    lines = "; ".join(f'"{line.text}" in {line.num_documents}' for line in corpus.boilerplate)
    return [
        f"corpus {corpus.name}: {100 * share:.0f} % {what}"
        + (f" ({lines})" if "lines" in what else "")
        for what, share in kinds.items()
        if share > REPETITION
    ]


def _recommend(setting: str, value: float, now: float, reason: str) -> Recommendation:
    return Recommendation(setting=setting, value=value, now=now, reason=reason)


def _rate(config: RunConfig, now: float, hidden_size: int) -> Recommendation:
    scale, scaled = (
        RECIPE_WIDTH / hidden_size,
        f"scaled from width {RECIPE_WIDTH} as 1/width, which was not measured",
    )
    at_hand = "measured at this width" if hidden_size == RECIPE_WIDTH else scaled
    if config.method in TUNED:
        rate, tried = TUNED[config.method]
        reason = (
            f"validation on French chose {rate:g} of {tried} (LAB), {at_hand}; a higher one forgets"
            " more"
        )
    else:
        rate = find_method(config.method).learning_rate or 0.0
        reason = f"the method's recipe, {at_hand}; not tuned"
    reason += ". Try half and twice: neutral compare with tune: true"
    return _recommend(
        "training.learning_rate", float(f"{rate * scale:.3g}"), float(f"{now:.3g}"), reason
    )


def _steps(
    config: RunConfig, texts: Sequence[TextFacts], tokens_per_step: int
) -> list[Recommendation]:
    steps = config.training.steps
    readings = readings_by_role(config, texts, tokens_per_step=tokens_per_step).get("target")
    if readings is None:
        return []
    most = max(1, int(steps * READINGS / readings))
    reason = (
        f"the target is read {readings:.2f} times; up to {READINGS} times is nearly as good as new"
        f" text (arXiv 2305.16264), so up to {most:,} steps pay. LAB: with 4 times the tokens"
        " learning rose from 84 to 89 % of fine-tuning's"
    )
    return [_recommend("training.steps", min(steps, most), steps, reason)]
