"""Intervals and p-values against numbers worked out by hand, and against what a 95 % interval
promises."""

import math

import numpy as np
import pytest

pytest.importorskip("scipy")

from neutral_residues.evaluation.tasks.paired_statistics import paired_means, paired_scores


def test_by_hand() -> None:
    # Of ten items three get right, one gets wrong, six stay: the mean change is 0.2, its standard
    # error 0.2.
    before, after = [0, 0, 0, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 1, 1, 1, 0, 0, 0]
    found = paired_means(before, after)
    assert (found.backbone, found.extended, found.difference) == (
        0.4,
        pytest.approx(0.6),
        pytest.approx(0.2),
    )
    half = 2.2621571628540993 * 0.2  # Student's t with 9 degrees of freedom, at 97.5 %
    assert (found.low, found.high) == (pytest.approx(0.2 - half), pytest.approx(0.2 + half))
    assert found.p_value == pytest.approx(10 / 16)  # 3 or more of 4, or 1 or fewer, of a fair coin


def test_where_no_item_changed_the_interval_is_not_zero() -> None:
    found = paired_means([1.0, 0.0] * 50, [1.0, 0.0] * 50)
    most = 1 - 0.025 ** (1 / 100)
    assert (found.difference, found.p_value) == (0, 1)
    assert (found.low, found.high) == (pytest.approx(-most), pytest.approx(most))


def test_an_interval_that_leaves_out_zero_is_significant() -> None:
    # Five items got worse and none better: t alone would call that sure, and McNemar says p = 2 /
    # 32.
    found = paired_means([1.0] * 5 + [0.0] * 5 + [1.0] * 90, [0.0] * 10 + [1.0] * 90)
    assert found.p_value == pytest.approx(2 / 32)
    assert found.low < -0.05 < 0 < found.high
    # Six of 0 to 6 are p = 2 / 64: now it does leave out 0.
    found = paired_means([1.0] * 6 + [0.0] * 4 + [1.0] * 90, [0.0] * 10 + [1.0] * 90)
    assert found.p_value == pytest.approx(2 / 64)
    assert found.low < -0.06 < found.high < 0


def test_graded_scores_get_the_t_test() -> None:
    found = paired_means([0.5, 0.25, 0.75, 0.5], [0.75, 0.5, 0.75, 1.0])
    assert found.interval == "paired t"
    assert found.low < 0.25 < found.high
    assert paired_means([0.5, 0.25], [0.75, 0.5]).p_value is None  # no spread, no test


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        before = generator.random(300) < 0.6
        # A tenth of the items is answered anew, a little better: the true change is 0.1 * (0.8 -
        # 0.6).
        again = generator.random(300) < 0.1
        after = np.where(again, generator.random(300) < 0.8, before)
        found = paired_means(before.astype(float).tolist(), after.astype(float).tolist())
        held += found.low <= 0.02 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_any_other_score_is_computed_again_on_drawn_items() -> None:
    generator = np.random.default_rng(1)
    losses = generator.normal(2, 0.5, 200)

    def perplexity(nats: list[float]) -> float:
        return math.exp(sum(nats) / len(nats))

    found = paired_scores(losses.tolist(), (losses - 0.1).tolist(), perplexity)
    assert found.difference == pytest.approx(perplexity(losses.tolist()) * (math.exp(-0.1) - 1))
    # The same shift on every item: only the backbone's own perplexity varies, so the interval is
    # narrow and below 0.
    assert found.low < found.difference < found.high < 0.9 * found.difference
    assert paired_scores(losses.tolist(), (losses - 0.1).tolist(), perplexity) == found
