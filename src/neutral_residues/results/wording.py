"""Changes of task scores as words: how much, and whether it is more than noise."""

from neutral_residues.results.record import TaskScore
from neutral_residues.units import decimal

LARGE = 10_000
"""From here on a change is written with a power of ten."""


def factor_of(task: TaskScore) -> int:
    """Shares are shown in %."""
    return 100 if task.unit == "share" else 1


def change_in_words(difference: float, low: float, high: float, *, direction: str) -> str:
    """For example "no change beyond noise (−0.1 ± 0.4)", if the 95 % interval holds 0."""
    words = better_or_worse(difference, direction)
    if low <= 0 <= high:
        words = "no change beyond noise"
    return f"{words} ({with_half_width(difference, low, high)})"


def better_or_worse(difference: float, direction: str) -> str:
    """Which of the two a change is; `direction` says whether higher or lower is better."""
    return "better" if (difference > 0) == (direction == "higher") else "worse"


def with_half_width(difference: float, low: float, high: float) -> str:
    """For example "+2.0 ± 1.0", or "+2.0e+05 ± 1.0e+05" where perplexities are that far off."""
    half = (high - low) / 2
    if max(abs(difference), half) >= LARGE:
        return f"{difference:+.1e} ± {half:.1e}".replace("-", "−")
    return f"{decimal(difference, 1, signed=True)} ± {half:.1f}"
