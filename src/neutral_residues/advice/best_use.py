"""What the time is best spent on: training as planned, or something else, or nothing at all.

The first that holds of

    nothing      the steps tried taught next to nothing; where none were: the backbone predicts the
                 target as well as the source
    vocabulary   the target takes over `COSTLY` times the tokens of the source, and none are new
    replay       nothing else protects source text, and little of it is replayed
    training

Further training on text like that of pretraining teaches little and can make the same text worse
(arXiv 2410.05581); LAB.md, "what the time is best spent on", has our own runs.
"""

from collections.abc import Sequence
from typing import Literal

from neutral_residues.advice.rules import COSTLY, TextFacts, bits_of_sides, token_cost
from neutral_residues.config.run import RunConfig
from neutral_residues.results.base import Part

LITTLE = 0.02
"""Steps tried that take away less than this share of the target's bits per byte teach next to
nothing (LAB: 20 steps on more of what the backbone was trained on added 1 %, on French they took
29 % away)."""
MUCH_REPLAY = 0.3
"""Share of source rows that is much where nothing else protects source text (LAB: fine-tuning
forgot 5.7 % of novels with it and 29 % with a tenth, and learnt 9 % less)."""

Use = Literal["nothing", "vocabulary", "replay", "training"]

TITLES: dict[Use, str] = {
    "nothing": "nothing: use the backbone as it is",
    "vocabulary": "new tokens first (vocabulary.size)",
    "replay": "a larger data.source_share first, or a method with gates",
    "training": "training as planned",
}


class BestUse(Part):
    """One of four, and why."""

    of_time: Use
    reason: str
    """A clause."""

    @property
    def line(self) -> str:
        """For people."""
        return f"best use of the time: {TITLES[self.of_time]}; {self.reason}"


def best_use(
    config: RunConfig, texts: Sequence[TextFacts], *, trial_drop: float | None, is_protected: bool
) -> BestUse:
    """What to spend time on first.

    Args:
        trial_drop: share of the target's bits per byte that the steps tried took away; None where
            none were tried, or nothing was measured.
        is_protected: whether a local loss or a KL divergence acts on source text.
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
