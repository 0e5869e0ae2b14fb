"""How numbers are written, in page, summary and pictures alike: "2.110 ± 0.004", "+0.31 %", "1.2
GiB"."""

from neutral_residues.report.aggregate import Point, Section, Spread

NONE = "–"


def spread(value: Spread | None, digits: int = 3, *, sign: bool = False) -> str:
    """Mean and standard deviation."""
    if value is None:
        return NONE
    mean = number(value.mean, digits, sign=sign)
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.{digits}f}"


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """With a true minus, and never "-0.00"."""
    if value is None:
        return NONE
    value = round(value, digits) or 0.0
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def percent(value: Spread, digits: int = 2) -> str:
    """A signed change."""
    return f"{spread(value, digits, sign=True)} %"


def share(value: float | None, digits: int = 0) -> str:
    """A share from 0 to 1, in %."""
    return NONE if value is None else f"{number(100 * value, digits)} %"


def rate(point: Point) -> str:
    """Learning rate of a point."""
    if point.learning_rate is not None:
        return f"{point.learning_rate:.3g}"
    return NONE if point.share is not None else "recipe"


def seeds(n: int) -> str:
    """Number of seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"


def gibibytes(num_bytes: float | None) -> str:
    """Memory."""
    return NONE if num_bytes is None else f"{num_bytes / 2**30:.2f}"


def millions(weights: float | None) -> str:
    """Weights."""
    if weights is None:
        return NONE
    return f"{weights / 1e6:.3g}" if weights < 1e9 else f"{weights / 1e6:,.0f}"


def described(point: Point) -> str:
    """A point by its name and what sets it apart within its curve."""
    if point.share is not None:
        return f"{point.name} at share {point.share:g}"
    return (
        point.name
        if point.learning_rate is None
        else f"{point.name} at learning rate {point.learning_rate:.3g}"
    )


def row_name(point: Point, section: Section) -> str:
    """A point by its name alone, where no other row of the section has that name."""
    namesakes = [row for row in section.rows if row.name == point.name]
    return point.name if len(namesakes) == 1 and namesakes[0] is point else described(point)
