"""How everything is drawn, on the page and in pictures: colours, markers and dashes.

The colours are Okabe and Ito's, which colour-blind eyes tell apart. Known methods always look the
same; others take what is free. When colours run out they come again with another dash, and the
marker differs long after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from neutral_residues.report.aggregate import Curve
from neutral_residues.results.set_result import TokenKind


class Marker(NamedTuple):
    """One marker: its names, and as a path in a square from -5 to 5 for the legend of the page."""

    plotly: str
    matplotlib: str
    path: str


class Dash(NamedTuple):
    """One dash: its names, and as `stroke-dasharray` for the legend of the page."""

    plotly: str
    matplotlib: str
    array: str


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C")
GREY = "#8C8C8C"
"""Backbone, Pareto front, and what others are held against."""
MARKERS = (
    Marker("circle", "o", "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z"),
    Marker("square", "s", "M-4,-4H4V4H-4Z"),
    Marker("triangle-up", "^", "M0,-5L5,4H-5Z"),
    Marker("diamond", "D", "M0,-5.5L5.5,0L0,5.5L-5.5,0Z"),
    Marker("triangle-down", "v", "M0,5L5,-4H-5Z"),
    Marker("cross", "P", "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z"),
    Marker("x", "X", "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z"),
    Marker("pentagon", "p", "M0,-5L5,-1.5L3,4.5H-3L-5,-1.5Z"),
    Marker("hexagon", "h", "M-5,0L-2.5,-4.5H2.5L5,0L2.5,4.5H-2.5Z"),
    Marker(
        "star",
        "*",
        "M0,-5.5L1.6,-1.8L5.5,-1.6L2.5,1L3.4,5L0,2.7L-3.4,5L-2.5,1L-5.5,-1.6L-1.6,-1.8Z",
    ),
)
DASHES = (
    Dash("solid", "-", "none"),
    Dash("dash", "--", "5,3"),
    Dash("dot", ":", "1.5,2.5"),
    Dash("dashdot", "-.", "5,2,1,2"),
)
KNOWN = {"neutral": 0, "adapter": 1, "lora": 2, "finetune": 3}
"""Label -> number of its style."""
KIND_COLOURS: dict[TokenKind, str] = {
    "end of text": "#555555",
    "partial characters": "#8C8C8C",
    "white space": "#BFBFBF",
    "punctuation": "#F0E442",
    "digits": "#CC79A7",
    "other script": "#D55E00",
    "names": "#009E73",
    "frequent words": "#56B4E9",
    "rare words": "#0072B2",
}


@dataclass(frozen=True)
class Style:
    """How one curve is drawn.

    Attributes:
        colour: as #RRGGBB.
    """

    colour: str
    marker: Marker
    dash: Dash

    @classmethod
    def numbered(cls, number: int) -> "Style":
        """The style of that number; all of the first 280 differ."""
        return cls(
            COLOURS[number % len(COLOURS)],
            MARKERS[number % len(MARKERS)],
            DASHES[number // len(COLOURS) % len(DASHES)],
        )

    @property
    def matplotlib_line(self) -> dict[str, Any]:
        """Arguments of matplotlib's `plot` for the line alone."""
        return {"color": self.colour, "linestyle": self.dash.matplotlib}


def styles(curves: Sequence[Curve]) -> dict[str, Style]:
    """A style for the name of each curve; the first curve of a known label has that label's own."""
    numbers: dict[str, int] = {}
    for curve in curves:
        if KNOWN.get(curve.label, -1) not in {-1, *numbers.values()}:
            numbers[curve.name] = KNOWN[curve.label]
    free = (number for number in range(len(curves) + len(KNOWN)) if number not in numbers.values())
    return {
        curve.name: Style.numbered(numbers[curve.name] if curve.name in numbers else next(free))
        for curve in curves
    }


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows all values, with room around them."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def shortened(text: str, length: int = 40) -> str:
    """A label that fits."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
