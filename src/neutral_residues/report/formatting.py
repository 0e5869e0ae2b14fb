"""How numbers are written, on page, summary and figures: "2.110 ± 0.004", "+0.31 %"."""

from neutral_residues.report.aggregate import Spread
from neutral_residues.results.set_result import LayerNumber
from neutral_residues.units import decimal

NONE = "–"
"""Not measured."""


def number(value: float | Spread | None, digits: int = 3, *, signed: bool = False) -> str:
    """A number, with its standard deviation if there are several seeds."""
    if value is None:
        return NONE
    if not isinstance(value, Spread):
        return decimal(value, digits, signed=signed)
    mean = decimal(value.mean, digits, signed=signed)
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.{digits}f}"


def change(value: float | Spread, digits: int = 2) -> str:
    """A change in %, with its sign."""
    return f"{number(value, digits, signed=True)} %"


def share(value: float | None, digits: int = 0) -> str:
    """A share from 0 to 1, in %."""
    return NONE if value is None else f"{number(100 * value, digits)} %"


def short(value: float | None) -> str:
    """Three significant digits, 0.0005, 3.04, 120; all digits of a larger number, 1,234."""
    if value is None:
        return NONE
    return decimal(value, 0) if abs(value) >= 1000 else f"{value:.3g}"


def layer_name(layer: LayerNumber) -> str:
    """An extended layer, or the output head."""
    return layer if isinstance(layer, str) else f"layer {layer}"


def seeds(n: int) -> str:
    """Number of seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"
