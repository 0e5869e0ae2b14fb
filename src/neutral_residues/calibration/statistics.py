"""Tests on a sample of units what holds for all units like them, with stated confidence. No torch.

A unit is what is drawn independently, the source of documents (`units.py`); it has a loss, a number
from 0 to 1, at each position of a dial (`dial.py`). Positions are ordered from the strictest (gates
least open) to the extension as it was trained.

    p-value      of the hypothesis "the mean loss of all units is above `at_most`" at one position:
                 exact binomial if losses can only be 0 or 1, else by betting
    sequence     positions are tested from the strictest on, each at the full level, until the first
                 that fails: the promise holds at all before it together, with the stated
                 confidence, whether losses rise along the dial or not
    on average   without a confidence: conformal risk control, for losses that rise along the dial

Betting: a bettor starts with a wealth of 1 and stakes the share v of it on each unit, to win if its
loss is below `at_most`. If the mean loss is above `at_most`, the final wealth is 1/p or more with
probability at most p, so 1/wealth is a p-value. v is chosen on other units. With the largest stake
and no loss at all it is the exact binomial tail, (1 - at_most)^n.

Sources: Angelopoulos, Bates, Candes, Jordan and Lei, *Learn then Test*, arXiv 2110.01052 (sections
2 and 3); Angelopoulos, Bates, Fisch, Lei and Schuster, *Conformal Risk Control*, arXiv 2208.02814
(theorem 1); Waudby-Smith and Ramdas, *Estimating means of bounded random variables by betting*,
arXiv 2010.09686 (section 4).
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
"""(n,) one number from 0 to 1 for each unit."""

STAKES = tuple(2.0 ** (-step / 2) for step in range(13))
"""Shares of the largest stake among which the best is chosen: 1 down to 1/64."""
TUNING_SHARE, MIN_TUNING = 0.1, 10
"""Share of the units, and their smallest number, that are for tuning: they determine the dial's
positions and the stake, and test nothing."""


def binomial_p_value(losses: Losses, at_most: float) -> float:
    """P-value of the hypothesis "the mean loss of all units is above `at_most`", for losses that
    are 0 or 1."""
    from scipy.stats import binom

    return float(binom.cdf(losses.sum(), len(losses), at_most))


def betting_p_value(losses: Losses, at_most: float, stake: float) -> float:
    """P-value of the same hypothesis for losses from 0 to 1, by betting; `stake` is a share of the
    largest possible stake."""
    return math.exp(-max(0.0, _log_wealth(losses, at_most, stake)))


def _log_wealth(losses: Losses, at_most: float, stake: float) -> float:
    """Log of the final wealth of a bettor with this share of the largest stake, 1/(1 - at_most)."""
    with np.errstate(divide="ignore"):
        return float(np.log1p(stake / (1 - at_most) * (at_most - losses)).sum())


def best_stake(tuning: Losses, at_most: float, num_units: int) -> float:
    """The stake that would win most on `num_units` units like those of `tuning` and one more with a
    loss of 1/2, since few tuning units cannot rule out such a loss."""
    repeats, rare = num_units / len(tuning), np.array([0.5])

    def wealth(stake: float) -> float:
        own = _log_wealth(tuning, at_most, stake)
        return repeats * own + _log_wealth(rare, at_most, stake)

    return max(STAKES, key=wealth)


def num_certified(p_values: Iterable[float], level: float) -> int:
    """Number of positions before the first whose p-value is above `level`; the promise holds at all
    of them together."""
    for number, value in enumerate(p_values):
        if value > level:
            return number
        last = number
    return last + 1


def average_bound(losses: Losses) -> float:
    """Upper bound on the expected loss of the next unit, if losses rise along the dial and this is
    the last position at which the bound is small enough."""
    return float((losses.sum() + 1) / (len(losses) + 1))


def units_needed(at_most: float, confidence: float | None) -> int:
    """The fewest units, tuning units included, that can keep a promise if none of them has a loss;
    without a confidence, on average."""
    if confidence is None:
        testing = math.ceil(1 / at_most - 1 - 1e-9)
    else:
        testing = math.ceil(math.log(1 - confidence) / math.log1p(-at_most) - 1e-9)
    number = testing
    while number - num_tuning(number) < testing:
        number += 1
    return number


def num_tuning(num_units: int) -> int:
    """How many of `num_units` units are for tuning."""
    return max(MIN_TUNING, round(TUNING_SHARE * num_units))


def conformal_p_value(score: float, calibration: Sequence[float]) -> float:
    """P-value of the hypothesis "this score was drawn like those of `calibration`" (sorted); large
    scores speak against it. At least 1/(n + 1)."""
    above = len(calibration) - int(np.searchsorted(calibration, score, side="left"))
    return (above + 1) / (len(calibration) + 1)
