"""`neutral methods`: the table of methods."""

from command_line import Neutral


def test_the_methods_are_listed(neutral: Neutral) -> None:
    code, printed = neutral("methods")
    assert code == 0
    for name in ("neutral-classifier", "block-expansion", "wise-ft"):
        assert name in printed
