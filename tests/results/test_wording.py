"""Changes of scores in words."""

import pytest

from neutral_residues.results.wording import change_in_words


@pytest.mark.parametrize(
    ("change", "direction", "words"),
    [
        ((-0.1, -0.5, 0.3), "higher", "no change beyond noise (−0.1 ± 0.4)"),
        ((-0.04, -0.5, 0.42), "higher", "no change beyond noise (+0.0 ± 0.5)"),
        ((2.0, 1.0, 3.0), "higher", "better (+2.0 ± 1.0)"),
        ((2.0, 1.0, 3.0), "lower", "worse (+2.0 ± 1.0)"),
        ((-2.0, -3.0, -1.0), "lower", "better (−2.0 ± 1.0)"),
        ((-3e4, -5e4, -1e4), "lower", "better (−3.0e+04 ± 2.0e+04)"),
    ],
)
def test_changes_in_words(change: tuple[float, float, float], direction: str, words: str) -> None:
    assert change_in_words(*change, direction=direction) == words
