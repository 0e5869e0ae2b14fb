"""Sizes, times and numbers as people read them."""

import pytest

from neutral_residues.units import decimal, human_bytes, human_seconds


def test_sizes() -> None:
    sizes = {12: "12 B", 1536: "1.5 KiB", 5 * 2**20: "5.0 MiB", 4096 * 2**30: "4096.0 GiB"}
    assert {size: human_bytes(size) for size in sizes} == sizes


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.4, "9 s"), (59.6, "1 min 00 s"), (3725, "1 h 02 min")]
)
def test_times(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(-0.314, False, "−0.31"), (-0.001, True, "+0.00"), (12345.678, True, "+12,345.68")],
)
def test_numbers_have_a_true_minus_and_no_negative_zero(
    value: float, signed: bool, text: str
) -> None:
    assert decimal(value, 2, signed=signed) == text
