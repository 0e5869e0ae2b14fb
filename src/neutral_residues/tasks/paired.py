"""How sure a difference is that two models show on the same items: interval and p-value, from scipy.

Both models answered every item, so the items are paired: what they agree on carries no noise, and the interval is far
narrower than that of two separate scores.

Where we choose: scores that are means over items get the interval of the paired t-test; for right-or-wrong items the
p-value is McNemar's, exact. Where no item changed there is no spread to measure: the interval then reaches as far as
the share of changing items could (Clopper-Pearson). Any other score (perplexity, corpus F1) is computed again on
items drawn anew (bootstrap). No torch; scipy is imported where it is used.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 1000


@dataclass(frozen=True)
class Paired:
    """Scores of both models on the same items.

    Attributes:
        backbone: score of the backbone.
        extended: score of the extended model.
        low: lower end of the 95 % interval of extended - backbone.
        high: upper end.
        p_value: two-sided, of no difference; None where there is no test.
        interval: how the two were found.
    """

    backbone: float
    extended: float
    low: float
    high: float
    p_value: float | None
    interval: str

    @property
    def difference(self) -> float:
        """Extended minus backbone."""
        return self.extended - self.backbone


def paired_means(backbone: Sequence[float], extended: Sequence[float]) -> Paired:
    """For a score that is the mean of one number for each item.

    Args:
        backbone: (n) the backbone's, n at least 2.
        extended: (n) the extended model's on the same items.
    """
    before, after = np.asarray(backbone, dtype=np.float64), np.asarray(extended, dtype=np.float64)
    assert before.shape == after.shape, "paired items"
    changes = after - before
    is_binary = bool(np.isin([before, after], (0.0, 1.0)).all())
    if not changes.any() and is_binary:
        low, high, interval = *_nothing_changed(len(changes)), "Clopper-Pearson of changed items, none changed"
    else:
        low, high, interval = *_t_interval(changes), "paired t"
    test = "exact McNemar" if is_binary else "paired t-test"
    p_value = _mcnemar(changes) if is_binary else _t_test(changes)
    return Paired(float(before.mean()), float(after.mean()), low, high, p_value, f"{interval}; {test}")


def paired_scores(backbone: Sequence[Any], extended: Sequence[Any], score: Callable[[list[Any]], float]) -> Paired:
    """For any score of a list of items, such as perplexity or a corpus F1: percentile bootstrap over the items.

    Args:
        backbone: (n) what the score takes for each item, of the backbone; n at least 2.
        extended: (n) of the extended model on the same items.
        score: from any list of these to a number.
    """
    from scipy.stats import bootstrap

    def difference(indices: NDArray[np.int64]) -> float:
        return score([extended[i] for i in indices]) - score([backbone[i] for i in indices])

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
    return Paired(before, after, float(found.low), float(found.high), None, f"bootstrap of {RESAMPLES}")


def _t_interval(changes: NDArray[np.float64]) -> tuple[float, float]:
    from scipy.stats import sem, t

    mean, half = float(changes.mean()), float(sem(changes) * t.ppf((1 + LEVEL) / 2, len(changes) - 1))
    return mean - half, mean + half


def _nothing_changed(num_items: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    most = float(binomtest(0, num_items).proportion_ci(LEVEL).high)
    return -most, most


def _mcnemar(changes: NDArray[np.float64]) -> float:
    from scipy.stats import binomtest

    better, changed = int((changes > 0).sum()), int((changes != 0).sum())
    return float(binomtest(better, changed).pvalue) if changed else 1.0


def _t_test(changes: NDArray[np.float64]) -> float | None:
    from scipy.stats import ttest_1samp

    return float(ttest_1samp(changes, 0.0).pvalue) if np.ptp(changes) > 0 else None
