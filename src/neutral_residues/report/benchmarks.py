"""Benchmarks as figures: each ratio as a bar with its bound, or as a line over the size that
varies."""

import html
from collections.abc import Sequence

from neutral_residues.report.aggregate import grouped
from neutral_residues.report.figure import (
    Plot,
    add_line,
    add_points,
    add_thin_line,
    empty_figure,
    hover,
    legend_above,
)
from neutral_residues.report.formatting import number
from neutral_residues.report.style import COLOURS, GREY, Style
from neutral_residues.report.tables import LOWER, Column, RowName, Table, numbers, texts
from neutral_residues.results.benchmark import Benchmark, Measured


def benchmark_plots(benchmark: Benchmark) -> list[Plot]:
    """One figure for each group of rows."""
    return [
        (_bars if rows[0].x is None else _lines)(rows)
        for rows in grouped(benchmark.rows, lambda row: row.group)
    ]


def benchmark_table(benchmark: Benchmark) -> Table:
    """All rows, for the summary."""
    rows = [row for row in benchmark.rows if row.name != row.against]
    groups = [r.group if r.quantity == "time" else f"{r.group} ({r.quantity})" for r in rows]
    return _table(rows, texts("of what", groups), texts("against", [row.against for row in rows]))


def _table(rows: Sequence[Measured], *more: Column) -> Table:
    names = [row.name if row.x is None else f"{row.name}, {row.x_label} {row.x:g}" for row in rows]
    ratios = numbers("ratio", [row.ratio for row in rows], 3, "x", LOWER)
    bounds = numbers("bound", [row.bound for row in rows], 3, "x")
    return Table(tuple(map(RowName, names)), (*more, ratios, bounds), first="measured")


def _axis_title(rows: Sequence[Measured]) -> str:
    return f"{rows[0].quantity}, x {html.escape(rows[0].against)}"


def _bars(rows: list[Measured]) -> Plot:
    figure, first = empty_figure(height=90 + 34 * len(rows)), rows[0]
    figure.add_bar(
        y=[html.escape(row.name) for row in rows],
        x=[row.ratio for row in rows],
        orientation="h",
        hovertext=[hover(row.name, f"{number(row.ratio)} x {row.against}") for row in rows],
        hoverinfo="text",
        marker={"color": [GREY if row.name == row.against else COLOURS[0] for row in rows]},
    )
    bounded = [row for row in rows if row.bound is not None]
    xs, ys = [row.bound for row in bounded], [html.escape(row.name) for row in bounded]
    notes = [hover(row.name, f"bound {number(row.bound)}") for row in bounded]
    tick = {"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": COLOURS[3]}}
    add_points(figure, xs, ys, name="bound", notes=notes, mode="markers", marker=tick)
    figure.update_xaxes(title=_axis_title(rows), rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    alt = f"{first.group}: {first.quantity} of each as a multiple of {first.against}"
    return Plot(first.group, figure, f"{alt}; the tick is the bound.", _table(rows))


def _lines(rows: list[Measured]) -> Plot:
    figure, first = empty_figure(height=320), rows[0]
    for index, line in enumerate(grouped(rows, lambda row: row.name)):
        style, name = Style.numbered(index), line[0].name
        xs, bounds = [row.x for row in line], [row.bound for row in line]
        notes = [hover(name, f"{row.x_label} {row.x:g}: {number(row.ratio)} x") for row in line]
        add_line(figure, xs, [row.ratio for row in line], style, name=name, notes=notes)
        if None not in bounds:
            add_thin_line(figure, xs, bounds, style.colour, name=f"{name}, bound")
    legend_above(figure)
    figure.update_xaxes(title=html.escape(first.x_label or ""))
    figure.update_yaxes(title=_axis_title(rows), rangemode="tozero")
    alt = f"{first.group}: measured (lines) and bounds (dotted)."
    return Plot(first.group, figure, alt, _table(rows))


def benchmark_facts(benchmark: Benchmark) -> dict[str, str]:
    """Where and how it ran."""
    made = benchmark.provenance
    packages = ", ".join(f"{name} {version}" for name, version in made.packages.items() if version)
    return {
        "command": benchmark.command,
        "ran on": f"{made.device}, {benchmark.threads} threads, {made.platform}",
        "rounds": str(benchmark.rounds),
        "settings": ", ".join(f"{name} {value}" for name, value in benchmark.settings.items()),
        "commit": made.git_commit or "not known",
        "packages": f"Python {made.python}, {packages}",
    }
