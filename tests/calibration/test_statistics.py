"""Statistics by hand, and by simulation: what is promised holds as often as is said."""

import math

import numpy as np
import pytest

from neutral_residues.calibration.statistics import (
    average_bound,
    best_stake,
    betting_p_value,
    binomial_p_value,
    conformal_p_value,
    num_certified,
    num_tuning,
    units_needed,
)

pytest.importorskip("scipy")


def test_without_any_loss_both_p_values_are_the_binomial_tail() -> None:
    assert binomial_p_value(np.zeros(299), 0.01) == pytest.approx(0.99**299)
    assert betting_p_value(np.zeros(299), 0.01, 1.0) == pytest.approx(0.99**299)


def test_binary_losses_by_hand() -> None:
    losses = np.array([1.0] + [0.0] * 9)
    assert binomial_p_value(losses, 0.2) == pytest.approx(0.8**10 + 10 * 0.2 * 0.8**9)


def test_betting_by_hand() -> None:
    # The largest stake multiplies by (1 - loss) / (1 - at_most) for each unit.
    losses = np.array([0.1, 0.0, 0.02])
    assert betting_p_value(losses, 0.3, 1.0) == pytest.approx(0.7**3 / (0.9 * 1.0 * 0.98))
    assert betting_p_value(np.array([0.5, 0.5]), 0.3, 1.0) == 1.0
    assert betting_p_value(np.array([1.0, 0.1]), 0.3, 1.0) == 1.0, "all is lost"


def test_the_stake_falls_where_losses_vary() -> None:
    rng = np.random.default_rng(0)
    assert best_stake(np.full(50, 0.001), 0.01, 450) == 1.0
    varied = (rng.random(50) < 0.1) * 0.8
    assert best_stake(varied, 0.2, 450) < 0.8


def test_units_needed() -> None:
    # levers: ln(1/delta) / eps, and a tenth for tuning
    assert math.log(0.05) / math.log(0.99) == pytest.approx(298.07, abs=0.01)
    needed = units_needed(0.01, 0.95)
    assert needed - num_tuning(needed) == 299
    assert binomial_p_value(np.zeros(299), 0.01) <= 0.05 < binomial_p_value(np.zeros(298), 0.01)
    needed = units_needed(0.01, None)
    assert needed - num_tuning(needed) == 99
    assert average_bound(np.zeros(99)) <= 0.01 < average_bound(np.zeros(98))


def test_the_sequence_ends_at_the_first_failure() -> None:
    assert num_certified([0.01, 0.05, 0.06, 0.0], 0.05) == 2
    assert num_certified([0.5, 0.0], 0.05) == 0
    assert num_certified([0.0, 0.01], 0.05) == 2


def test_conformal_p_value() -> None:
    assert conformal_p_value(2.5, [1.0, 2.0, 3.0]) == 2 / 4
    assert conformal_p_value(3.0, [1.0, 2.0, 3.0]) == 2 / 4, "an equal score is not smaller"
    assert conformal_p_value(9.0, [1.0, 2.0, 3.0]) == 1 / 4
    rng = np.random.default_rng(0)
    found = [conformal_p_value(rng.random(), np.sort(rng.random(19)).tolist()) for _ in range(2000)]
    assert np.mean(np.array(found) <= 0.1) == pytest.approx(0.1, abs=0.02)


def draw(rng: np.random.Generator, kind: str, shape: tuple[int, ...], mean: float) -> np.ndarray:
    if kind == "binary":
        return (rng.random(shape) < mean).astype(float)
    if kind == "small":
        return rng.beta(0.5, 0.5 / mean - 0.5, shape)
    heavy = rng.random(shape) < 2 * mean  # few units, each with a large loss
    return heavy * rng.uniform(0, 1, shape)


@pytest.mark.parametrize("kind", ["binary", "small", "heavy"])
def test_a_position_that_breaks_the_promise_is_rarely_certified(kind: str) -> None:
    """The mean loss is a hair above what is promised: certified in 10 % of draws at most."""
    rng = np.random.default_rng(1)
    at_most, level, draws, wrong, exact = 0.03, 0.1, 1000, 0, 0
    for _ in range(draws):
        losses = draw(rng, kind, (220,), at_most)
        stake = best_stake(losses[:20], at_most, 200)
        wrong += betting_p_value(losses[20:], at_most, stake) <= level
        if kind == "binary":
            exact += binomial_p_value(losses[20:], at_most) <= level
    assert exact / draws <= level + 0.02
    assert wrong / draws <= level + 0.02


def test_coverage_along_a_dial() -> None:
    """Losses rise along the dial, which is certified from the silent end; the mean loss where it
    stops is above the promise in 10 % of draws at most, and not far below it in most."""
    rng = np.random.default_rng(2)
    at_most, level, means = 0.05, 0.1, np.linspace(0.002, 0.12, 40)
    broken, reached = 0, []
    for _ in range(500):
        units = np.minimum(1, 2 * means * rng.exponential(0.5, 340)[:, None])
        tuning, testing = units[:40], units[40:]
        stakes = [best_stake(tuning[:, k], at_most, 300) for k in range(40)]
        number = num_certified(
            (betting_p_value(testing[:, k], at_most, stakes[k]) for k in range(40)), level
        )
        broken += number > 0 and means[number - 1] > at_most
        reached.append(means[number - 1] if number else 0.0)
    assert broken / 500 <= level + 0.02
    assert np.median(reached) > 0.7 * at_most


def test_coverage_on_average() -> None:
    """Conformal risk control: the next unit's expected loss is what was promised or less."""
    rng = np.random.default_rng(3)
    at_most, means, found = 0.05, np.linspace(0.002, 0.12, 60), []
    for _ in range(500):
        units = rng.uniform(0, 1, 100)[:, None] ** (1 / means - 1)
        bounds = [average_bound(units[:, k]) for k in range(60)]
        kept = [mean for mean, bound in zip(means, bounds, strict=True) if bound <= at_most]
        found.append(max(kept, default=0.0))
    assert 0.7 * at_most < np.mean(found) <= at_most * 1.02
