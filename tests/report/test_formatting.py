"""How numbers are written."""

from neutral_residues.report.aggregate import Spread
from neutral_residues.report.formatting import change, number, share, short


def test_numbers() -> None:
    assert number(Spread(2.2, 0.2, 3)) == "2.200 ± 0.200"
    assert number(Spread(1.5, None, 1), 2) == "1.50"
    assert number(-0.0004, 2, signed=True) == "+0.00"
    assert number(-1234.5, 1) == "−1,234.5"
    assert number(None) == "–"
    assert change(0.314) == "+0.31 %"
    assert share(0.843) == "84 %"
    assert [short(value) for value in (0.0005, 3.049, 12345, None)] == [
        "0.0005",
        "3.05",
        "12,345",
        "–",
    ]
