"""How certain the difference between two models on the same items is: interval and p-value, from
scipy.

Both models answered every item, so the items are paired: what they agree on carries no noise, and
the interval is far narrower than that of two separate scores.

Where we choose: scores that are means over items get the interval of the paired t-test. For
right-or-wrong items the p-value is McNemar's, exact, and the interval is widened, where need be, to
the exact one that belongs to it: that of the share of improved items among the changed ones. So an
interval that excludes 0 always has a p-value below 0.05, also where few items change. Where none
changed, it is as wide as the share of items that could have changed. Any other score (perplexity,
corpus F1) is computed again on resampled items (bootstrap). No torch; scipy is imported where it is
used.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000


class Paired(NamedTuple):
    """Scores of both models on the same items."""

    backbone: float
    extended: float
    low: float  # of the 95 % interval of extended - backbone
    high: float
    p_value: float | None  # two-sided, of no difference; None where there is no test
    interval: str  # how interval and p-value were found

    @property
    def difference(self) -> float:
        """Extended minus backbone."""
        return self.extended - self.backbone


def paired_means(backbone: Sequence[float], extended: Sequence[float]) -> Paired:
    """For a score that is the mean of one number for each of n items, 2 or more."""
    before, after = np.asarray(backbone, dtype=np.float64), np.asarray(extended, dtype=np.float64)
    assert before.shape == after.shape, "paired items"
    changes = after - before
    (low, high, p_value), interval = _t_test(changes), "paired t"
    if np.isin([before, after], (0.0, 1.0)).all():
        exact_low, exact_high, p_value = _mcnemar(changes)
        low, high = min(low, exact_low), max(high, exact_high)
        interval = "paired t, and no narrower than exact McNemar"
    return Paired(float(before.mean()), float(after.mean()), low, high, p_value, interval)


def paired_scores(
    backbone: Sequence[Any], extended: Sequence[Any], score: Callable[[list[Any]], float]
) -> Paired:
    """For any score of a list of items (2 or more), such as perplexity or a corpus F1: percentile
    bootstrap over the items."""
    from scipy.stats import bootstrap

    def difference(indices: NDArray[np.int64]) -> float:
        return score([extended[i] for i in indices]) - score([backbone[i] for i in indices])

    with np.errstate(invalid="ignore"):  # a score may be infinite
        found = bootstrap(
            (np.arange(len(backbone)),),
            difference,
            n_resamples=RESAMPLES,
            vectorized=False,
            confidence_level=LEVEL,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    before, after = float(score(list(backbone))), float(score(list(extended)))
    interval = f"bootstrap of {RESAMPLES}"
    return Paired(before, after, float(found.low), float(found.high), None, interval)


def _t_test(changes: NDArray[np.float64]) -> tuple[float, float, float | None]:
    """Interval of the mean change, and p-value; no p-value where all changes are the same."""
    from scipy.stats import ttest_1samp

    if np.ptp(changes) == 0:
        return float(changes[0]), float(changes[0]), None
    test = ttest_1samp(changes, 0.0)
    interval = test.confidence_interval(LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _mcnemar(changes: NDArray[np.float64]) -> tuple[float, float, float]:
    """Exact interval of the mean change, given how many items changed, and its p-value."""
    from scipy.stats import binomtest

    better, changed = int((changes > 0).sum()), int((changes != 0).sum())
    if not changed:
        most = float(binomtest(0, len(changes)).proportion_ci(LEVEL).high)
        return -most, most, 1.0
    test = binomtest(better, changed)
    share, found = changed / len(changes), test.proportion_ci(LEVEL)
    return share * float(2 * found.low - 1), share * float(2 * found.high - 1), float(test.pvalue)
