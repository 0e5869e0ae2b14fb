"""Changes of task scores in words: how large they are, and whether they exceed noise."""

from neutral_residues.results.record import TaskScore
from neutral_residues.units import decimal

LARGE = 10_000
"""Changes of at least this size are written with a power of ten."""


def factor_of(task: TaskScore) -> int:
    """Factor by which a score is multiplied for display: 100 for shares, which are shown in %."""
    return 100 if task.unit == "share" else 1


def change_in_words(difference: float, low: float, high: float, *, direction: str) -> str:
    """A change in words, for example "better (+2.0 ± 1.0)"; if the 95 % interval from `low` to
    `high` contains 0, "no change beyond noise (−0.1 ± 0.4)"."""
    words = better_or_worse(difference, direction)
    if low <= 0 <= high:
        words = "no change beyond noise"
    return f"{words} ({with_half_width(difference, low, high)})"


def better_or_worse(difference: float, direction: str) -> str:
    """Whether a change is "better" or "worse"; `direction` says if "higher" or "lower" scores are
    better."""
    return "better" if (difference > 0) == (direction == "higher") else "worse"


def with_half_width(difference: float, low: float, high: float) -> str:
    """A change with half the width of its interval, for example "+2.0 ± 1.0", or
    "+2.0e+05 ± 1.0e+05" for very large perplexities."""
    half = (high - low) / 2
    if max(abs(difference), half) >= LARGE:
        return f"{difference:+.1e} ± {half:.1e}".replace("-", "−")
    return f"{decimal(difference, 1, signed=True)} ± {half:.1f}"
