"""A colour, a marker and a dash for each curve: Okabe and Ito's colours, which colour-blind eyes
tell apart.

Known methods always look the same; others take what is free. When colours run out they come again
with another dash, and the marker differs long after.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from neutral_residues.report.aggregate import Curve

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C")
KNOWN = {"neutral": 0, "adapter": 1, "lora": 2, "finetune": 3}
# plotly's name, matplotlib's, and the same drawn in a square from -5 to 5 for the legend of the
# page
MARKERS = (
    ("circle", "o", "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z"),
    ("square", "s", "M-4,-4H4V4H-4Z"),
    ("triangle-up", "^", "M0,-5L5,4H-5Z"),
    ("diamond", "D", "M0,-5.5L5.5,0L0,5.5L-5.5,0Z"),
    ("triangle-down", "v", "M0,5L5,-4H-5Z"),
    ("cross", "P", "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z"),
    ("x", "X", "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z"),
    ("pentagon", "p", "M0,-5L5,-1.5L3,4.5H-3L-5,-1.5Z"),
    ("hexagon", "h", "M-5,0L-2.5,-4.5H2.5L5,0L2.5,4.5H-2.5Z"),
    ("star", "*", "M0,-5.5L1.6,-1.8L5.5,-1.6L2.5,1L3.4,5L0,2.7L-3.4,5L-2.5,1L-5.5,-1.6L-1.6,-1.8Z"),
)
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))


@dataclass(frozen=True)
class Look:
    """How one curve is drawn.

    Attributes:
        colour: as #RRGGBB.
        marker: plotly's name of it.
        picture_marker: matplotlib's.
        path: the marker as an SVG path.
        dash: plotly's name of it.
        picture_dash: matplotlib's.
    """

    colour: str
    marker: str
    picture_marker: str
    path: str
    dash: str
    picture_dash: str


def looks(curves: Sequence[Curve]) -> dict[str, Look]:
    """A look for the name of each curve; the first curve of a known label looks as that label
    always does."""
    numbers: dict[str, int] = {}
    for curve in curves:
        if KNOWN.get(curve.label, -1) not in {-1, *numbers.values()}:
            numbers[curve.name] = KNOWN[curve.label]
    free = (number for number in range(len(curves) + len(KNOWN)) if number not in numbers.values())
    return {
        curve.name: _look(numbers[curve.name] if curve.name in numbers else next(free))
        for curve in curves
    }


def _look(number: int) -> Look:
    marker, picture_marker, path = MARKERS[number % len(MARKERS)]
    dash, picture_dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return Look(COLOURS[number % len(COLOURS)], marker, picture_marker, path, dash, picture_dash)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows all values, with room around them."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
