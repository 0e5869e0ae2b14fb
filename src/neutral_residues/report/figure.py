"""Building blocks of interactive figures: an empty one in the style of the page, points and lines.

Text and grid colours come from the page, so that dark mode works. Every figure has a text that says
what it shows, and a table with the same numbers.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neutral_residues.report.style import Style
from neutral_residues.report.tables import Table

if TYPE_CHECKING:
    import plotly.graph_objects as go

Values = Sequence[Any]


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    title: str
    figure: "go.Figure"
    alt: str  # what it shows, in a sentence
    table: Table | None = None  # the same numbers; None if another table of the page has them
    views: Mapping[str, Any] | None = None
    """Other x axes to choose: name -> {"x", "y", "error": a list by trace, "title", "range"}."""


def empty_figure(*, height: int) -> "go.Figure":
    """A figure in the style of the page, without legend."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        # In the template, since setting an axis title later would drop a standoff.
        template=go.layout.Template(layout={"yaxis": {"title": {"standoff": 15}}}),
        height=height,
        margin={"l": 60, "r": 16, "t": 12, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    axes = {"zeroline": False, "ticks": "outside", "showline": True, "gridwidth": 1}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes, automargin=True)
    return figure


def legend_above(figure: "go.Figure") -> None:
    """Show the figure's own legend, where the buttons of the section do not name its lines."""
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    figure.update_layout(showlegend=True, legend=legend)


def add_points(
    figure: "go.Figure",
    xs: Values,
    ys: Values,
    *,
    name: str,
    notes: Values,
    curve: str = "",
    **more: Any,
) -> None:
    """Draw measurements: `name` for the legend, `notes` for the pointer (see `hover`), `curve` for
    the buttons of the section, and more of plotly's own arguments."""
    more |= {"hovertext": notes, "hoverinfo": "text", "meta": {"curve": curve}}
    figure.add_scatter(x=xs, y=ys, name=html.escape(name), **more)


def add_line(figure: "go.Figure", xs: Values, ys: Values, style: Style, **named: Any) -> None:
    """Draw measurements and the line through them; for the rest see `add_points`."""
    line = {"color": style.colour, "dash": style.dash.plotly, "width": 2}
    marker = {"symbol": style.marker.plotly, "size": 7}
    add_points(figure, xs, ys, mode="lines+markers", line=line, marker=marker, **named)


def add_thin_line(figure: "go.Figure", xs: Values, ys: Values, colour: str, **more: Any) -> None:
    """Draw a line without measurements: a single seed, a bound, the Pareto front."""
    line = {"color": colour, "width": 1, "dash": more.pop("dash", "dot")}
    more = {"hoverinfo": "skip", "showlegend": False, "meta": {}} | more
    figure.add_scatter(x=xs, y=ys, mode="lines", line=line, **more)


def error_bars(
    above: Sequence[float | None], below: Sequence[float] | None = None
) -> dict[str, Any]:
    """Symmetric error bars at each measurement; none if no deviation is known."""
    return {
        "type": "data",
        "array": [length or 0 for length in above],
        "arrayminus": below,
        "symmetric": below is None,
        "visible": any(length is not None for length in above),
        "thickness": 1.2,
        "width": 3,
    }


def hover(title: str, *lines: str) -> str:
    """What the pointer shows; all of it plain text."""
    return "<br>".join([f"<b>{html.escape(title)}</b>", *map(html.escape, lines)])
