"""Confidence interval and p-value of the difference between two models on the same items, with
scipy.

Both models answer every item, so that items are paired: items on which they agree add no noise, and
the interval is much narrower than for two independent scores.

Where we choose: for a score that is a mean over items, the interval is that of the paired t-test.
For right-or-wrong items, the p-value is that of the exact McNemar test, and the interval is
widened, if needed, to the exact one of this test, that of the share of improved items among the
changed ones. So an interval that excludes 0 always has a p-value below 0.05, also if few items
change. If none changed, it reaches to the share of items that could have changed. For other scores
(perplexity, corpus F1), items are resampled (bootstrap). No torch; scipy is imported in functions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000


class Paired(NamedTuple):
    """Scores of both models on the same items, and the uncertainty of their difference."""

    backbone: float
    extended: float
    low: float  # lower end of the 95 % interval of extended - backbone
    high: float  # its upper end
    p_value: float | None  # two-sided, for no difference; None without a test
    interval: str  # how interval and p-value were computed

    @property
    def difference(self) -> float:
        """Extended minus backbone."""
        return self.extended - self.backbone


def paired_means(backbone: Sequence[float], extended: Sequence[float]) -> Paired:
    """Compare scores that are means over items; arguments are one number per item, for two items or
    more."""
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
    """Compare any scores of a list of two items or more, such as perplexity or corpus F1, with a
    percentile bootstrap over items. `score` computes the score from what is known of each item."""
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
    """Interval of the mean change, and p-value; no p-value if all changes are equal."""
    from scipy.stats import ttest_1samp

    if np.ptp(changes) == 0:
        return float(changes[0]), float(changes[0]), None
    test = ttest_1samp(changes, 0.0)
    interval = test.confidence_interval(LEVEL)
    return float(interval.low), float(interval.high), float(test.pvalue)


def _mcnemar(changes: NDArray[np.float64]) -> tuple[float, float, float]:
    """Exact interval of the mean change, given the number of changed items, and p-value."""
    from scipy.stats import binomtest

    better, changed = int((changes > 0).sum()), int((changes != 0).sum())
    if not changed:
        most = float(binomtest(0, len(changes)).proportion_ci(LEVEL).high)
        return -most, most, 1.0
    test = binomtest(better, changed)
    share, found = changed / len(changes), test.proportion_ci(LEVEL)
    return share * float(2 * found.low - 1), share * float(2 * found.high - 1), float(test.pvalue)
