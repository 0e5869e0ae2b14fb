"""What all interactive figures share: an empty plotly figure in the look of the page, and lines and
bars in it.

Text and grid colours come from the page, so that dark mode works. Every figure has a text that says
what it shows and a table that says the same.
"""

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neutral_residues.report.style import Style
from neutral_residues.report.tables import Table

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Attributes:
        title: what stands over it.
        figure: the plotly figure.
        alt: what it shows, in a sentence.
        table: the same numbers; None where another table of the page has them.
        views: other x axes to choose: name -> {"x", "y", "error": a list for each trace, "title",
            "range"}.
    """

    title: str
    figure: "go.Figure"
    alt: str
    table: Table | None = None
    views: Mapping[str, Any] | None = None


def empty_figure(*, height: int) -> "go.Figure":
    """A figure in the look of the page, without legend."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template=go.layout.Template(),
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
    figure.update_yaxes(**axes, automargin=True, title_standoff=10)
    return figure


def figure_of_bars(names: Sequence[str], *, around: int = 60) -> "go.Figure":
    """An empty figure for one horizontal bar for each name, from top to bottom."""
    lines = max(bar_label(name).count("<br>") + 1 for name in names)
    figure = empty_figure(height=around + (14 * lines + 12) * len(names))
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return figure


def legend_above(figure: "go.Figure") -> None:
    """Show the figure's own legend, where the buttons of the section do not name its lines."""
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    )


def add_line(
    figure: "go.Figure",
    xs: Sequence[Any],
    ys: Sequence[Any],
    style: Style,
    *,
    name: str,
    notes: Sequence[str],
    curve: str = "",
) -> None:
    """Draw measurements and the line through them.

    Args:
        name: in the legend, and first line of what the pointer shows.
        notes: the line below it, for each measurement.
        curve: what the section's buttons call it.
    """
    figure.add_scatter(
        x=xs,
        y=ys,
        mode="lines+markers",
        name=html.escape(name),
        hovertext=[hover(name, note) for note in notes],
        hoverinfo="text",
        line={"color": style.colour, "dash": style.dash.plotly, "width": 2},
        marker={"symbol": style.marker.plotly, "size": 7},
        meta={"curve": curve},
    )


def add_thin_line(
    figure: "go.Figure", xs: Sequence[Any], ys: Sequence[Any], *, dash: str, **changes: Any
) -> None:
    """Draw a line without measurements: a single seed, a bound, the Pareto front."""
    line = {"dash": dash, "width": 1, "color": changes.pop("colour")}
    figure.add_scatter(x=xs, y=ys, mode="lines", line=line, **{"hoverinfo": "skip"} | changes)


def add_bar(figure: "go.Figure", row: str, value: float | None, colour: str, **more: Any) -> None:
    """Draw one horizontal bar, from the end of those of the same name on."""
    figure.add_bar(
        x=[value],
        y=[bar_label(row)],
        orientation="h",
        width=[0.7],
        marker={"color": colour},
        **more,
    )


def hover(title: str, *lines: str) -> str:
    """What the pointer shows; all of it plain text."""
    return "<br>".join([f"<b>{html.escape(title)}</b>", *map(html.escape, lines)])


def bar_label(name: str) -> str:
    """A name for an axis, in short lines."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(name, 22)[:3])
