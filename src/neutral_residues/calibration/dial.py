"""A dial: one number that moves the thresholds of all gates, and how far it can be turned up.

At position s each gate's threshold is the (1 - s)-quantile of its logits on the tuning units, but
at least 0, so each gate is open on at most the share s of their tokens. Positions go from 0, the
strictest, to the extension as it was trained, with thresholds of 0.

Suffix: N tokens of a stream.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neutral_residues.calibration.statistics import (
    average_bound,
    best_stake,
    betting_p_value,
    binomial_p_value,
    num_certified,
)
from neutral_residues.calibration.units import Losses

STEPS_PER_DOUBLING = {True: 8, False: 2}
"""Number of positions from a share to its double; fewer if each position needs a pass of its own
(key False)."""


@dataclass(frozen=True)
class Position:
    """One position of the dial."""

    share: float
    values: Mapping[str, float]  # gate -> its threshold

    @property
    def is_trained(self) -> bool:
        """Whether all thresholds are 0: the extension as it was trained."""
        return not any(self.values.values())


def positions(tuning: Mapping[str, NDArray[np.float32]], *, one_pass: bool) -> list[Position]:
    """All positions, from the strictest to the trained one; `tuning` is each gate's logits on
    tuning units."""
    num_tokens = len(next(iter(tuning.values())))
    doublings = np.log2(num_tokens)
    number = int(np.ceil(doublings * STEPS_PER_DOUBLING[one_pass]))
    shares = [0.0, *np.geomspace(1 / num_tokens, 1.0, number + 1).tolist()]
    found: list[Position] = []
    sorted_logits = {name: np.sort(logits) for name, logits in tuning.items()}
    for share in shares:
        # Exactly floor(s N) logits are above this one, if no two are equal.
        rank = num_tokens - 1 - int(share * num_tokens + 1e-9)
        values = {
            name: max(0.0, float(logits[max(0, rank)])) for name, logits in sorted_logits.items()
        }
        if found and found[-1].is_trained:
            break
        if not found or dict(found[-1].values) != values:
            found.append(Position(share, values))
    if not found[-1].is_trained:
        found.append(Position(1.0, dict.fromkeys(tuning, 0.0)))
    return found


def turned_up(
    dial: Sequence[Position],
    losses_at: Callable[[Position], Losses],
    at_most: float,
    confidence: float | None,
) -> int:
    """Number of positions, from the strictest on, that keep the promise; see `statistics.py`.

    Args:
        losses_at: measures the loss of each unit at a position; called from the strictest on, and
            not further than needed.
        at_most: the largest mean loss that is promised.
        confidence: None for a promise that holds on average.
    """
    if confidence is None:
        return num_certified(_average_bounds(dial, losses_at), at_most)
    return num_certified(_p_values(dial, losses_at, at_most), 1 - confidence)


def _p_values(
    dial: Sequence[Position], losses_at: Callable[[Position], Losses], at_most: float
) -> Iterator[float]:
    for position in dial:
        losses = losses_at(position)
        if losses.are_binary:
            yield binomial_p_value(losses.testing, at_most)
        else:
            stake = best_stake(losses.tuning, at_most, len(losses.testing))
            yield betting_p_value(losses.testing, at_most, stake)


def _average_bounds(
    dial: Sequence[Position], losses_at: Callable[[Position], Losses]
) -> Iterator[float]:
    """Upper bounds on the expected loss at each position; a unit's loss below an earlier one is
    raised to it, so that losses rise along the dial."""
    highest: NDArray[np.float64] | None = None
    for position in dial:
        losses = losses_at(position).testing
        highest = losses if highest is None else np.maximum(highest, losses)
        yield average_bound(highest)
