"""Segments of two texts in one row."""

import numpy as np
import pytest

from neutral_residues.data.splicing import segments, splice, splice_rest, starts


def test_two_texts_by_hand() -> None:
    where = np.array([0, 0, 1, 1, 1, 2])
    source, target = np.array([1, 2, 3, 4, 5, 6]), np.array([10, 20, 30, 40, 50, 60])
    assert splice(source, target, where).tolist() == [1, 2, 10, 20, 30, 3]
    assert splice_rest(source, target, where).tolist() == [40, 50, 4, 5, 6, 60]
    assert starts(where).tolist() == [False, False, True, False, False, True]
    both = splice(np.stack([source, -source]), np.stack([target, -target]), where)
    assert both.tolist() == [[1, 2, 10, 20, 30, 3], [-1, -2, -10, -20, -30, -3]]


@pytest.mark.parametrize("num_tokens", [16, 17, 128, 1000])
def test_every_row_switches_and_segments_are_of_8_to_64_tokens(num_tokens: int) -> None:
    lengths = []
    for seed in range(400):
        found = segments(num_tokens, np.random.default_rng(seed))
        assert found[0] == 0
        assert len(found) == num_tokens
        assert set(np.diff(found)) <= {0, 1}
        lengths += np.bincount(found).tolist()[:-1]
        assert found[-1] >= 1
    assert min(lengths) == 8
    assert max(lengths) == min(64, num_tokens // 2)
