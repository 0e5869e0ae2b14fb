"""Colours, markers and dashes keep curves apart."""

from neutral_residues.report.style import COLOURS, Style, limits, styles
from synthetic import make_record, make_section


def test_many_curves_stay_apart() -> None:
    drawn = styles(make_section(*(make_record(f"method-{n}") for n in range(25))).curves)
    assert len(set(drawn.values())) == 25
    assert len({style.colour for style in list(drawn.values())[:7]}) == 7
    assert len({Style.numbered(number) for number in range(70)}) == 70


def test_known_methods_always_look_the_same() -> None:
    drawn = styles(make_section(*map(make_record, ("vera", "lora", "neutral"))).curves)
    assert drawn["neutral"].colour == COLOURS[0]
    assert drawn["lora"].colour == COLOURS[2]
    assert drawn["vera"].colour == COLOURS[1]


def test_limits_leave_room() -> None:
    assert limits([1.0, 2.0]) == (0.88, 2.12)
    assert limits([0.0]) == (-1.0, 1.0)
