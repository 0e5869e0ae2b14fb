"""What to spend time on before a run: training as planned, something else first, or nothing.

The first of these whose condition holds:

    nothing      the trial steps taught almost nothing; without a trial: the backbone predicts
                 target text as well as source text
    vocabulary   target text needs over `COSTLY` times the tokens of source text, and the run adds
                 no tokens
    replay       little source text is replayed, and no local loss or KL term protects it
    training     otherwise

Further training on text like that of pretraining teaches little and can make the same text worse
(arXiv 2410.05581); LAB.md, "what the time is best spent on", has our own runs.
"""

from collections.abc import Sequence
from typing import Literal

from neutral_residues.advice.rules import COSTLY, TextFacts, bits_of_sides, token_cost
from neutral_residues.config.run import RunConfig
from neutral_residues.results.base import Part

LITTLE = 0.02
"""Trial steps that lower the target's bits per byte by a smaller share teach almost nothing (LAB:
20 steps on more text like that of pretraining raised them by 1 %, on French they lowered them by
29 %)."""
MUCH_REPLAY = 0.3
"""Share of source rows that is enough if nothing else protects source text (LAB: with it,
fine-tuning forgot 5.7 % of novels instead of 29 % with a tenth, and learnt 9 % less)."""

Use = Literal["nothing", "vocabulary", "replay", "training"]

TITLES: dict[Use, str] = {
    "nothing": "nothing: use the backbone as it is",
    "vocabulary": "new tokens first (vocabulary.size)",
    "replay": "a larger data.source_share first, or a method with gates",
    "training": "training as planned",
}


class BestUse(Part):
    """What to spend time on first, and why."""

    of_time: Use
    reason: str
    """A clause without a full stop."""

    @property
    def line(self) -> str:
        """The advice as one line of text."""
        return f"best use of the time: {TITLES[self.of_time]}; {self.reason}"


def best_use(
    config: RunConfig, texts: Sequence[TextFacts], *, trial_drop: float | None, is_protected: bool
) -> BestUse:
    """What to spend time on first, see the module docstring.

    Args:
        trial_drop: relative decrease of the target's bits per byte in the trial; None without a
            trial or measurements.
        is_protected: whether the run has a local loss or a KL term on source text.
    """
    bits, cost, share = bits_of_sides(texts), token_cost(texts), config.data.source_share
    tried = "no steps were tried"
    if trial_drop is not None:
        tried = f"the steps tried changed the target's bits per byte by {-100 * trial_drop:+.1f} %"
        if trial_drop < LITTLE:
            do = "on text that is foreign to the backbone, look at training.learning_rate"
            return BestUse(of_time="nothing", reason=f"{tried}; {do}")
    elif bits is not None and bits.target <= bits.source:
        return BestUse(of_time="nothing", reason="it predicts the target as well as the source")
    if cost is not None and cost.times > COSTLY and not config.vocabulary.size:
        reason = f"the target takes {cost.times:.1f} times the tokens of the source"
        return BestUse(of_time="vocabulary", reason=reason)
    if not is_protected and share < MUCH_REPLAY:
        reason = f"nothing protects source text but {100 * share:.0f} % of the rows"
        return BestUse(of_time="replay", reason=reason)
    return BestUse(of_time="training", reason=tried)
