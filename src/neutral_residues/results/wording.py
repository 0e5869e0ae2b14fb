"""Numbers as words: how much a change is, and whether it is more than noise."""

from neutral_residues.results.record import TaskScore


def factor_of(task: TaskScore) -> int:
    """Shares are shown in %."""
    return 100 if task.unit == "share" else 1


def change_in_words(difference: float, low: float, high: float, *, direction: str) -> str:
    """For example "no change beyond noise (-0.1 ± 0.4)": judged by whether the 95 % interval holds
    0."""
    numbers = f"({_with_half_width(difference, low, high)})"
    if low <= 0 <= high:
        return f"no change beyond noise {numbers}"
    return f"{_good_or_bad(difference, direction)} {numbers}"


def _good_or_bad(difference: float, direction: str) -> str:
    return "better" if (difference > 0) == (direction == "higher") else "worse"


def _with_half_width(difference: float, low: float, high: float) -> str:
    """With a true minus, and never "-0.0"."""
    text = f"{round(difference, 1) or 0.0:+.1f}".replace("+0.0", "0.0").replace("-", "−")
    return f"{text} ± {(high - low) / 2:.1f}"
