"""Colours, markers and dashes, on the page and in figures.

The colours are Okabe and Ito's, for colour-blind readers. Known methods always have the same style;
others take free ones. When colours run out they are reused with another dash; markers differ even
longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from neutral_residues.report.aggregate import Curve
from neutral_residues.results.set_result import TokenKind


class Mark(NamedTuple):
    """A marker or dash: names, and SVG for a legend: a path (-5 to 5) or a `stroke-dasharray`."""

    plotly: str
    matplotlib: str
    svg: str


COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8C8C8C")
GREY = "#8C8C8C"
"""For the backbone, the Pareto front and references."""
MARKERS = (
    Mark("circle", "o", "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z"),
    Mark("square", "s", "M-4,-4H4V4H-4Z"),
    Mark("triangle-up", "^", "M0,-5L5,4H-5Z"),
    Mark("diamond", "D", "M0,-5.5L5.5,0L0,5.5L-5.5,0Z"),
    Mark("triangle-down", "v", "M0,5L5,-4H-5Z"),
    Mark("cross", "P", "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z"),
    Mark("x", "X", "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z"),
    Mark("pentagon", "p", "M0,-5L5,-1.5L3,4.5H-3L-5,-1.5Z"),
    Mark("hexagon", "h", "M-5,0L-2.5,-4.5H2.5L5,0L2.5,4.5H-2.5Z"),
    Mark(
        "star",
        "*",
        "M0,-5.5L1.6,-1.8L5.5,-1.6L2.5,1L3.4,5L0,2.7L-3.4,5L-2.5,1L-5.5,-1.6L-1.6,-1.8Z",
    ),
)
DASHES = (
    Mark("solid", "-", "none"),
    Mark("dash", "--", "5,3"),
    Mark("dot", ":", "1.5,2.5"),
    Mark("dashdot", "-.", "5,2,1,2"),
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
    """How one curve is drawn."""

    colour: str  # as #RRGGBB
    marker: Mark
    dash: Mark

    @classmethod
    def numbered(cls, number: int) -> "Style":
        """The style with a number; the first 280 all differ."""
        colour, dash = number % len(COLOURS), number // len(COLOURS) % len(DASHES)
        return cls(COLOURS[colour], MARKERS[number % len(MARKERS)], DASHES[dash])


def styles(curves: Sequence[Curve]) -> dict[str, Style]:
    """A style for the name of each curve; the first curve of a known label has that label's own."""
    numbers: dict[str, int] = {}
    for curve in curves:
        if KNOWN.get(curve.label, -1) not in {-1, *numbers.values()}:
            numbers[curve.name] = KNOWN[curve.label]
    free = (number for number in range(len(curves) + len(KNOWN)) if number not in numbers.values())
    names = [curve.name for curve in curves]
    return {n: Style.numbered(numbers[n] if n in numbers else next(free)) for n in names}


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that shows all values with a margin."""
    low, high = min(values), max(values)
    margin = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def shortened(text: str, length: int = 40) -> str:
    """A label, shortened if it is too long."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
