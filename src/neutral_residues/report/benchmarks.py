"""Benchmarks as figures: each measured ratio as a bar with its bound beside it, or as a line over
what grows."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import neutral_residues.report.formatting as numbers
from neutral_residues.report.plots import Plot, bare_figure
from neutral_residues.report.style import COLOURS, DASHES, MARKERS
from neutral_residues.report.tables import Cell, Column, Row, Table
from neutral_residues.results.benchmark import Benchmark, Measured

BOUND = "#8C8C8C"


@dataclass(frozen=True)
class ShownBenchmark:
    """One benchmark, ready for the template.

    Attributes:
        facts: (name, text) of where and how it ran.
        looks: none: a row has no curve of its own.
    """

    key: str
    benchmark: Benchmark
    plots: list[Plot]
    facts: tuple[tuple[str, str], ...]
    looks: dict[str, Any] = field(default_factory=dict)


def shown_benchmarks(benchmarks: Sequence[Benchmark]) -> list[ShownBenchmark]:
    """Every benchmark with its figures, in the order given."""
    return [
        ShownBenchmark(f"b{number}", benchmark, benchmark_plots(benchmark), _facts(benchmark))
        for number, benchmark in enumerate(benchmarks, start=1)
    ]


def benchmark_plots(benchmark: Benchmark) -> list[Plot]:
    """One figure for each group of rows."""
    groups: dict[str, list[Measured]] = {}
    for row in benchmark.rows:
        groups.setdefault(row.group, []).append(row)
    return [
        (_bars if rows[0].x is None else _lines)(f"group-{number}", group, rows)
        for number, (group, rows) in enumerate(groups.items())
    ]


def benchmark_table(benchmark: Benchmark) -> Table:
    """All rows, for the summary."""
    columns = (
        Column("measured"),
        Column("of what"),
        Column("ratio", "x", "lower is better"),
        Column("bound", "x"),
        Column("against"),
    )
    rows = [
        Row(
            _name(row), (Cell(_group(row)), _ratio(row.ratio), _ratio(row.bound), Cell(row.against))
        )
        for row in benchmark.rows
        if row.name != row.against
    ]
    return Table(columns, tuple(rows))


def _bars(key: str, group: str, rows: list[Measured]) -> Plot:
    figure, names = bare_figure(height=90 + 34 * len(rows)), [html.escape(row.name) for row in rows]
    against = html.escape(rows[0].against)
    texts = [
        f"<b>{name}</b><br>{numbers.number(r.ratio, 3)} x {against}"
        for name, r in zip(names, rows, strict=True)
    ]
    figure.add_bar(
        y=names, x=[row.ratio for row in rows], orientation="h", hovertext=texts, hoverinfo="text",
        marker={"color": [COLOURS[6] if row.name == row.against else COLOURS[0] for row in rows]},
    )  # fmt: skip
    bounded = [row for row in rows if row.bound is not None]
    figure.add_scatter(
        y=[html.escape(row.name) for row in bounded], x=[row.bound for row in bounded], mode="markers",
        marker={"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": COLOURS[3]}},
        hovertext=[f"bound {numbers.number(row.bound or 0, 3)}" for row in bounded], hoverinfo="text",
    )  # fmt: skip
    figure.update_xaxes(title=f"{rows[0].quantity}, x {against}", rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    alt = (
        f"{group}: {rows[0].quantity} of each as a multiple of {rows[0].against}; the tick is what"
        " arithmetic allows."
    )
    columns = (Column("who"), Column("ratio", "x", "lower is better"), Column("bound", "x"))
    table = Table(
        columns, tuple(Row(row.name, (_ratio(row.ratio), _ratio(row.bound))) for row in rows)
    )
    return Plot(key, group, figure, alt, table)


def _lines(key: str, group: str, rows: list[Measured]) -> Plot:
    figure = bare_figure(height=320)
    for number, name in enumerate(dict.fromkeys(row.name for row in rows)):
        mine = [row for row in rows if row.name == name]
        colour, xs, bounds = (
            COLOURS[number % len(COLOURS)],
            [row.x for row in mine],
            [row.bound for row in mine],
        )
        texts = [
            f"{html.escape(name)}<br>{r.x_label} {r.x:g}: {numbers.number(r.ratio, 3)} x"
            for r in mine
        ]
        figure.add_scatter(
            x=xs, y=[row.ratio for row in mine], mode="lines+markers", name=html.escape(name), hovertext=texts,
            line={"color": colour, "dash": DASHES[number % len(DASHES)][0]}, hoverinfo="text",
            marker={"symbol": MARKERS[number % len(MARKERS)][0], "size": 8},
        )  # fmt: skip
        if None not in bounds:
            figure.add_scatter(
                x=xs, y=bounds, mode="lines", line={"color": colour, "dash": "dot", "width": 1}, showlegend=False,
                hovertext=[f"bound {numbers.number(b or 0, 3)}" for b in bounds], hoverinfo="text",
            )  # fmt: skip
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    )
    figure.update_xaxes(title=html.escape(rows[0].x_label or ""))
    figure.update_yaxes(
        title=f"{rows[0].quantity}, x {html.escape(rows[0].against)}", rangemode="tozero"
    )
    axis = Column(rows[0].x_label or "x")
    lines = [
        Row(row.name, (Cell(f"{row.x:g}", row.x), _ratio(row.ratio), _ratio(row.bound)))
        for row in rows
    ]
    table = Table(
        (Column("who"), axis, Column("ratio", "x", "lower is better"), Column("bound", "x")),
        tuple(lines),
    )
    return Plot(
        key, group, figure, f"{group}: measured (lines) and what arithmetic allows (dotted).", table
    )


def _ratio(value: float | None) -> Cell:
    return Cell("", None) if value is None else Cell(numbers.number(value, 3), value)


def _name(row: Measured) -> str:
    return row.name if row.x is None else f"{row.name}, {row.x_label} {row.x:g}"


def _group(row: Measured) -> str:
    return f"{row.group} ({row.quantity})" if row.quantity != "time" else row.group


def _facts(benchmark: Benchmark) -> tuple[tuple[str, str], ...]:
    made = benchmark.provenance
    packages = ", ".join(f"{name} {version}" for name, version in made.packages.items() if version)
    return (
        ("command", benchmark.command),
        ("ran on", f"{made.device}, {benchmark.threads} threads, {made.platform}"),
        ("rounds", str(benchmark.rounds)),
        ("settings", ", ".join(f"{name} {value}" for name, value in benchmark.settings.items())),
        ("commit", made.git_commit or "not known"),
        ("packages", f"Python {made.python}, {packages}"),
    )
