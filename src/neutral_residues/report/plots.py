"""Interactive figures, as plotly figures. Text and grid colours come from the page, so that dark
mode works.

Every figure has a text that says what it shows and a table that says the same.
"""

import html
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import neutral_residues.report.formatting as numbers
from neutral_residues.report.aggregate import Point, Section, Spread
from neutral_residues.report.curves import courses, layer_values, sets_in_curves
from neutral_residues.report.pareto import pareto_front
from neutral_residues.report.style import COLOURS, DASHES, MARKERS, Look, limits, looks
from neutral_residues.report.tables import Cell, Column, Row, Table, by_set, cost_table
from neutral_residues.report.tasks import TaskResult, task_results

if TYPE_CHECKING:
    import plotly.graph_objects as go

BARS = ("step", "throughput", "peak memory", "added", "stored")
"""Columns of the cost table that are drawn."""
MEAN = "mean of the source sets"


@dataclass(frozen=True)
class Plot:
    """One figure of the page.

    Attributes:
        key: its name within the section.
        title: what stands over it.
        figure: the plotly figure.
        alt: what it shows, in a sentence.
        table: the same numbers; None where another table of the page has them.
        views: other x axes to choose: name -> {"x", "y", "error": a list for each trace, "title",
            "range"}.
    """

    key: str
    title: str
    figure: "go.Figure"
    alt: str
    table: Table | None = None
    views: Mapping[str, Any] | None = None


def plane(section: Section) -> Plot:
    """Forgetting against learning, with the Pareto front; every source set can be the x axis."""
    choices: dict[str, Callable[[Point], Spread]] = {MEAN: lambda p: p.forgetting}
    if len(section.sources) == 1:
        choices = {}
    for source in section.sources:
        choices[source] = lambda p, source=source: p.forgetting_by_set[source]  # type: ignore[misc]
    views = {name: _view(section, name, of) for name, of in choices.items()}
    first = next(iter(views.values()))
    figure = bare_figure(height=460)
    style = looks(section.curves)
    for number, curve in enumerate(section.curves):
        figure.add_scatter(
            x=first["x"][number],
            y=first["y"][number],
            error_x=_error(first["error"][number]),
            error_y=_error([p.bits.deviation for p in curve.points]),
            **_points_style(style[curve.name], curve.points),
            hovertext=[_hover(p, section) for p in curve.points],
            hoverinfo="text",
            name=html.escape(curve.name),
            meta={"curve": curve.name},
        )
    figure.add_scatter(
        x=first["x"][-2], y=first["y"][-2], mode="lines", line={"color": "#8C8C8C", "width": 1, "dash": "dot"},
        hoverinfo="skip", name="Pareto front", meta={"role": "front"},
    )  # fmt: skip
    figure.add_scatter(
        x=[0], y=[section.backbone_bits], mode="markers", marker={"symbol": "star", "size": 13, "color": "#8C8C8C"},
        hovertext=[f"<b>backbone</b><br>{numbers.number(section.backbone_bits, 4)} bits per byte"], hoverinfo="text",
        name="backbone", meta={"role": "backbone"},
    )  # fmt: skip
    figure.update_xaxes(title=first["title"], range=first["range"], zeroline=True)
    figure.update_yaxes(
        title=f"bits per byte, {html.escape(_short(section.name))}, down is good",
        range=limits([p.bits.mean for p in section.framed]),
    )
    alt = (
        f"Forgetting (left is good) against bits per byte on {section.name} (down is good) of"
        f" {len(section.points)} points. The table below has all numbers."
    )
    return Plot(
        "plane",
        "What was learnt, what was forgotten",
        figure,
        alt,
        None,
        views if len(views) > 1 else None,
    )


def training(section: Section) -> list[Plot]:
    """Bits per byte through training: one plot for each set that was measured on the way."""
    return [_training(section, set, role) for set, role in sets_in_curves(section).items()]


def layers(section: Section) -> list[Plot]:
    """Share of shut gates and size of the residue by layer: two plots for each point that has
    them."""
    found = []
    gated_first = sorted(section.rows, key=lambda point: not layer_values(point, "gates_zero"))
    for number, point in enumerate(gated_first):
        for name, title, unit in (
            ("gates_zero", "gates that are exactly 0", "% of tokens"),
            ("residue_rms", "size of the residue", "root mean square"),
        ):
            values = layer_values(point, name)
            if values:
                key = f"layers-{number}-{name}"
                found.append(
                    _layers(
                        key,
                        f"{numbers.row_name(point, section)}: {title}",
                        unit,
                        values,
                        name == "gates_zero",
                    )
                )
    return found


def costs(section: Section) -> list[Plot]:
    """A bar chart for each cost that was measured."""
    table, style = cost_table(section), looks(section.curves)
    found = []
    for index, column in enumerate(table.columns[1:]):
        cells = [row.cells[index] for row in table.rows]
        if column.name in BARS and any(cell.value is not None for cell in cells):
            lines = max(wrapped(row.name).count("<br>") + 1 for row in table.rows)
            figure = bare_figure(height=60 + (14 * lines + 12) * len(cells))
            for row, cell in zip(table.rows, cells, strict=True):
                figure.add_bar(
                    x=[cell.value or 0], y=[wrapped(row.name)], orientation="h", width=[0.7], text=[cell.text],
                    textposition="auto", textangle=0, marker={"color": style[row.curve].colour}, hoverinfo="skip",
                    name=html.escape(row.name), meta={"curve": row.curve},
                )  # fmt: skip
            _bars_in_units(figure, cells)
            figure.update_xaxes(rangemode="tozero", nticks=5, tickangle=0)
            figure.update_yaxes(autorange="reversed", automargin=True, type="category")
            alt = f"Bars of {column.text}, one for each run. The table has the numbers."
            found.append(Plot(f"cost-{index}", column.text, figure, alt))
    return found


def tasks(section: Section) -> list[Plot]:
    """Change on each task with its 95 % interval: one plot for right-or-wrong tasks; others differ
    in scale."""
    found = [result for result in task_results(section) if result.score.unit == "share"]
    if not found:
        return []
    names = list(dict.fromkeys(result.score.name for result in found))
    by_run: dict[str, list[TaskResult]] = {}
    for result in found:
        by_run.setdefault(numbers.row_name(result.point, section), []).append(result)
    figure, style = (
        bare_figure(height=90 + len(names) * (24 + 15 * len(by_run))),
        looks(section.curves),
    )
    for number, (run, results) in enumerate(by_run.items()):
        look = style[results[0].point.name]
        # Runs side by side within their task, the first on top.
        places = [
            names.index(r.score.name) + 0.7 * ((number + 0.5) / len(by_run) - 0.5) for r in results
        ]
        means = [r.difference.mean for r in results]
        figure.add_scatter(
            x=means, y=places, mode="markers", marker={"color": look.colour, "symbol": look.marker, "size": 9},
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.5, "width": 4,
                "array": [r.high - m for r, m in zip(results, means, strict=True)],
                "arrayminus": [m - r.low for r, m in zip(results, means, strict=True)],
            },
            hovertext=[
                f"<b>{html.escape(run)}</b><br>{html.escape(r.score.name)}: {numbers.number(r.backbone, 1)} to "
                f"{numbers.number(r.extended, 1)} %<br>{r.change}"
                for r in results
            ],
            hoverinfo="text", name=html.escape(run), meta={"curve": results[0].point.name},
        )  # fmt: skip
    labels = {r.score.name: html.escape(_short(r.score.name)) for r in found}
    figure.update_xaxes(
        title="change of the score, percentage points, right is good", zeroline=True
    )
    figure.update_yaxes(
        tickvals=list(range(len(names))), ticktext=[labels[name] for name in names],
        range=[len(names) - 0.5, -0.5], automargin=True,
    )  # fmt: skip
    alt = (
        "Change of each run on each task with its 95 % interval; the line at 0 is the backbone. The"
        " table has all."
    )
    return [Plot("tasks", "Change on tasks, with 95 % intervals", figure, alt)]


def _view(section: Section, name: str, of: Callable[[Point], Spread]) -> dict[str, Any]:
    """x, y and error of every trace for one choice of the x axis: the curves, the front, the
    backbone."""
    front = pareto_front(section.points, lambda p: of(p).mean)
    xs = [[of(p).mean for p in curve.points] for curve in section.curves]
    ys = [[p.bits.mean for p in curve.points] for curve in section.curves]
    return {
        "x": [*xs, [of(p).mean for p in front], [0]],
        "y": [*ys, [p.bits.mean for p in front], [section.backbone_bits]],
        "error": [[of(p).deviation for p in curve.points] for curve in section.curves],
        "title": (
            f"forgetting, {'mean' if name == MEAN else html.escape(_short(name))} [%], left is good"
        ),
        "range": limits([0.0, *(of(p).mean for p in section.framed)]),
    }


def _points_style(look: Look, points: Sequence[Point]) -> dict[str, Any]:
    """Filled markers for points that stand for their curve, open ones for those that validation
    left out."""
    left_out = [p.is_chosen is False for p in points]
    return {
        "mode": "lines+markers" if len(points) > 1 else "markers",
        "cliponaxis": False,
        "line": {"color": look.colour, "dash": look.dash, "width": 1.5},
        "marker": {
            "color": look.colour,
            "opacity": 1,
            "symbol": [f"{look.marker}-open" if out else look.marker for out in left_out],
            "size": [8 if out else 12 for out in left_out],
            "line": {"color": look.colour, "width": [1.5 if out else 0 for out in left_out]},
        },
    }


def _hover(point: Point, section: Section) -> str:
    lines = [f"<b>{html.escape(numbers.described(point))}</b>"]
    lines += [f"forgetting {numbers.percent(point.forgetting)}"]
    if len(section.sources) > 1:
        lines += [
            f"    {html.escape(s)} {numbers.percent(v)}" for s, v in point.forgetting_by_set.items()
        ]
    lines += [
        f"{numbers.spread(point.bits, 4)} bits per byte, {numbers.percent(point.learning_percent)}"
    ]
    lines += (
        [f"{numbers.share(point.learning_share)} of fine-tuning's drop"]
        if point.learning_share
        else []
    )
    lines += (
        [f"{numbers.share(point.new_share, 1)} new weights"] if point.new_share is not None else []
    )
    chosen = {True: ", chosen by validation", False: ", not chosen", None: ""}[point.is_chosen]
    return "<br>".join([*lines, f"{numbers.seeds(point.bits.n)}{chosen}"])


def _training(section: Section, set: str, role: str) -> Plot:
    figure, style = bare_figure(height=320), looks(section.curves)
    found = courses(section, set)
    for course in found:
        look, name = style[course.point.name], numbers.row_name(course.point, section)
        if len(course.seeds) > 1:
            for steps, values in course.seeds:
                figure.add_scatter(
                    x=steps, y=values, mode="lines", line={"color": look.colour, "width": 1, "dash": look.dash},
                    opacity=0.3, hoverinfo="skip", meta={"curve": course.point.name}, name=html.escape(name),
                )  # fmt: skip
        texts = [
            f"<b>{html.escape(name)}</b><br>step {step:,}: {numbers.number(value, 4)} bits per byte"
            for step, value in zip(course.steps, course.means, strict=True)
        ]
        figure.add_scatter(
            x=course.steps, y=course.means, mode="lines+markers", hovertext=texts, hoverinfo="text",
            line={"color": look.colour, "dash": look.dash, "width": 2}, name=html.escape(name),
            marker={"symbol": look.marker, "size": 7}, meta={"curve": course.point.name},
        )  # fmt: skip
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="bits per byte, down is good")
    rows = [
        Row(
            numbers.row_name(course.point, section),
            tuple(Cell(numbers.number(v, 4), v) for v in (course.means[0], course.means[-1])),
            course.point.name,
        )
        for course in found
    ]
    columns = (
        Column("run"),
        Column("first measured", "bits/byte"),
        Column("last measured", "bits/byte"),
    )
    alt = f"Bits per byte of {set} at each step measured, one line for each run; lower is better."
    return Plot(f"training-{set}", f"{set} ({role})", figure, alt, Table(columns, tuple(rows)))


def _layers(
    key: str, title: str, unit: str, values: Mapping[str, Mapping[int, float]], in_percent: bool
) -> Plot:
    figure, factor = bare_figure(height=320), 100 if in_percent else 1
    for number, (set, by_layer) in enumerate(values.items()):
        shown = {layer: factor * value for layer, value in by_layer.items()}
        texts = [
            f"<b>{html.escape(set)}</b><br>layer {layer}: {numbers.number(v, 3)} {unit}"
            for layer, v in shown.items()
        ]
        figure.add_scatter(
            x=list(shown), y=list(shown.values()), mode="lines+markers", name=html.escape(set), hovertext=texts,
            hoverinfo="text", line={"color": COLOURS[number % len(COLOURS)], "dash": DASHES[number % len(DASHES)][0]},
            marker={"symbol": MARKERS[number % len(MARKERS)][0], "size": 8},
        )  # fmt: skip
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    )
    figure.update_xaxes(title="layer", dtick=1 if len(next(iter(values.values()))) <= 16 else None)
    figure.update_yaxes(title=unit, range=[-3, 103] if in_percent else None, rangemode="tozero")
    numbers_of = sorted({layer for by_layer in values.values() for layer in by_layer})
    rows = [
        Row(
            f"layer {layer}",
            tuple(Cell(numbers.number(factor * v[layer], 3), v[layer]) for v in values.values()),
        )
        for layer in numbers_of
    ]
    alt = f"{title}, by layer, one line for each evaluation set."
    return Plot(key, title, figure, alt, Table(by_set("layer", list(values), unit), tuple(rows)))


def _bars_in_units(figure: "go.Figure", cells: Iterable[Cell]) -> None:
    """The cost table sorts memory by bytes and weights one by one; bars are drawn in the unit of
    the heading."""
    for trace, cell in zip(figure.data, cells, strict=True):
        trace.x = [float(cell.text.replace(",", "")) if cell.value is not None else 0]


def _error(deviations: Sequence[float | None]) -> dict[str, Any]:
    shown = any(deviation is not None for deviation in deviations)
    return {
        "type": "data",
        "array": [d or 0 for d in deviations],
        "visible": shown,
        "thickness": 1,
        "width": 3,
    }


def wrapped(text: str) -> str:
    """A name for an axis, in short lines."""
    return "<br>".join(html.escape(line) for line in textwrap.wrap(text, 22)[:3])


def _short(text: str, length: int = 40) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def bare_figure(*, height: int) -> "go.Figure":
    """An empty figure in the look of the page."""
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
    figure.update_xaxes(zeroline=False, ticks="outside", showline=True, gridwidth=1)
    figure.update_yaxes(
        zeroline=False,
        ticks="outside",
        showline=True,
        gridwidth=1,
        automargin=True,
        title_standoff=10,
    )
    return figure


def all_plots(section: Section) -> list[Plot]:
    """Every figure of a section."""
    return [plane(section), *training(section), *tasks(section), *layers(section), *costs(section)]
