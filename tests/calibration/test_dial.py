"""The dial by hand: from silent to as trained, and how far it goes."""

import numpy as np

from neutral_residues.calibration.dial import positions, turned_up
from neutral_residues.calibration.units import Losses

LOGITS = {"a": np.array([-1, 0.5, 3, 2], np.float32), "b": np.array([-4, -3, 9, -2], np.float32)}


def test_positions_by_hand() -> None:
    dial = positions(LOGITS, one_pass=False)
    assert [dict(position.values) for position in dial] == [
        {"a": 3.0, "b": 9.0},  # nothing of the tuning text opens them
        {"a": 2.0, "b": 0.0},  # one token in four
        {"a": 0.5, "b": 0.0},
        {"a": 0.0, "b": 0.0},
    ]
    assert [position.is_trained for position in dial] == [False, False, False, True]
    for position in dial:
        for name, value in position.values.items():
            assert (LOGITS[name] > value).mean() <= position.share


def test_it_stops_at_the_first_position_that_fails() -> None:
    dial = positions(LOGITS, one_pass=False)
    by_share = dict(zip([p.share for p in dial], [0.0, 0.02, 0.9, 0.0], strict=True))
    asked = []

    def losses_at(position):
        asked.append(position.share)
        losses = np.full(200, by_share[position.share])
        return Losses(losses[:20], losses)

    assert turned_up(dial, losses_at, 0.1, 0.9) == 2
    assert len(asked) == 3, "and asks no further"
    assert turned_up(dial, losses_at, 0.1, None) == 2
    assert turned_up(dial[2:], losses_at, 0.1, None) == 0, "a fall does not count on average"
