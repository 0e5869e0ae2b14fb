"""The interactive figures of a section: forgetting against learning, training and layers."""

import html
from collections.abc import Mapping
from typing import Any

from neutral_residues.report.aggregate import Curve, Point, Section, Spread
from neutral_residues.report.curves import layer_values, rises, sets_in_curves, training_curves
from neutral_residues.report.figure import (
    Plot,
    add_line,
    add_points,
    add_thin_line,
    empty_figure,
    error_bars,
    hover,
    legend_above,
)
from neutral_residues.report.formatting import change, layer_name, number, seeds, share
from neutral_residues.report.pareto import pareto_front
from neutral_residues.report.style import GREY, KNOWN, Style, limits, shortened, styles
from neutral_residues.report.tables import BITS, RowName, Table, numbers, row_names
from neutral_residues.results.record import Record
from neutral_residues.results.set_result import WRONG, LayerNumber, wrong_share

MEAN = "mean of the source sets"
MOST_TICKS = 10
"""Largest number of layers that are named on an axis."""


def plane(section: Section) -> Plot:
    """Forgetting against learning, with the Pareto front; every source set can be the x axis."""
    names = [MEAN, *section.sources] if len(section.sources) > 1 else section.sources
    views = {name: _view(section, name) for name in names}
    first = views[names[0]]
    figure, look = empty_figure(height=460), styles(section.curves)
    xs, ys = first["x"], first["y"]
    for curve, x, y, errors in zip(section.curves, xs, ys, first["error"], strict=False):
        more = _curve_look(curve, look[curve.name]) | {"error_x": error_bars(errors)}
        more["error_y"] = error_bars([point.bits.deviation for point in curve.points])
        notes = [_note(point, section) for point in curve.points]
        add_points(figure, x, y, name=curve.name, notes=notes, curve=curve.name, **more)
    add_thin_line(figure, xs[-2], ys[-2], GREY, name="Pareto front")
    star: dict[str, Any] = {"marker": {"symbol": "star", "size": 13, "color": GREY}}
    star |= {"name": "backbone", "mode": "markers", "showlegend": False}
    notes = [hover("backbone", f"{number(section.backbone_bits, 4)} bits per byte")]
    add_points(figure, xs[-1], ys[-1], notes=notes, **star)
    figure.update_xaxes(title=first["title"], range=first["range"], zeroline=True)
    figure.update_yaxes(
        title=f"bits per byte, {html.escape(shortened(section.name))}, down is good",
        range=limits([point.bits.mean for point in section.cropped_points]),
    )
    alt = f"Forgetting (left is good) against bits per byte on {section.name} (down is good)"
    alt += f" of {len(section.points)} points. The table below has all numbers."
    title = "What was learnt, what was forgotten"
    return Plot(title, figure, alt, views=views if len(views) > 1 else None)


def _view(section: Section, name: str) -> dict[str, Any]:
    """Every trace for one choice of the x axis: the curves, the front, the backbone."""

    def of(point: Point) -> Spread:
        return point.forgetting if name == MEAN else point.forgetting_by_set[name]

    front = pareto_front(section.points, of)
    groups = [*(curve.points for curve in section.curves), front]
    short = "mean" if name == MEAN else html.escape(shortened(name))
    return {
        "x": [*([of(point).mean for point in group] for group in groups), [0]],
        "y": [*([point.bits.mean for point in group] for group in groups), [section.backbone_bits]],
        "error": [[of(point).deviation for point in curve.points] for curve in section.curves],
        "title": f"forgetting, {short} [%], left is good",
        "range": limits([0.0, *(of(point).mean for point in section.cropped_points)]),
    }


def _curve_look(curve: Curve, style: Style) -> dict[str, Any]:
    """Line and markers; those of points that validation did not choose are open."""
    open_ = [point.is_chosen is False for point in curve.points]
    symbol = style.marker.plotly
    marker = {
        "color": style.colour,
        "opacity": 1,
        "symbol": [f"{symbol}-open" if is_open else symbol for is_open in open_],
        "size": [8 if is_open else 12 for is_open in open_],
        "line": {"color": style.colour, "width": [1.5 * is_open for is_open in open_]},
    }
    line = {"color": style.colour, "dash": style.dash.plotly, "width": 1.5}
    mode = "lines+markers" if len(curve.points) > 1 else "markers"
    return {"mode": mode, "cliponaxis": False, "line": line, "marker": marker}


def _note(point: Point, section: Section) -> str:
    lines = [f"forgetting {change(point.forgetting)}"]
    if len(section.sources) > 1:
        lines += [f"    {name} {change(value)}" for name, value in point.forgetting_by_set.items()]
    lines.append(f"{number(point.bits, 4)} bits per byte, {change(point.learning_percent)}")
    if point.learning_share:
        lines.append(f"{share(point.learning_share)} of fine-tuning's drop")
    if point.first.cost.new_share is not None:
        lines.append(f"{share(point.first.cost.new_share, 1)} new weights")
    chosen = {True: ", chosen by validation", False: ", not chosen", None: ""}[point.is_chosen]
    return hover(point.full_name, *lines, f"{seeds(point.bits.n)}{chosen}")


def training(section: Section) -> list[Plot]:
    """Bits per byte during training: one plot for each set that was measured."""
    return [_training(section, name, role) for name, role in sets_in_curves(section).items()]


def _training(section: Section, set_name: str, role: str) -> Plot:
    figure, look = empty_figure(height=320), styles(section.curves)
    curves = training_curves(section, set_name)
    for curve in curves:
        name, style = curve.point.name, look[curve.point.name]
        for seed in curve.seeds if len(curve.seeds) > 1 else ():
            more = {"dash": style.dash.plotly, "opacity": 0.3, "meta": {"curve": name}}
            add_thin_line(figure, list(seed), list(seed.values()), style.colour, **more)
        row, means = section.row_name(curve.point), zip(curve.steps, curve.means, strict=True)
        notes = [hover(row, f"step {n:,}: {number(bits, 4)} bits per byte") for n, bits in means]
        add_line(figure, curve.steps, curve.means, style, name=row, notes=notes, curve=name)
    figure.update_xaxes(title="step", rangemode="tozero")
    figure.update_yaxes(title="bits per byte, down is good")
    rows = row_names([curve.point for curve in curves], section)
    first = numbers("first measured", [curve.means[0] for curve in curves], 4, BITS)
    last = numbers("last measured", [curve.means[-1] for curve in curves], 4, BITS)
    alt = f"Bits per byte of {set_name} at each step measured, one line per run; lower is better."
    return Plot(f"{set_name} ({role})", figure, alt, Table(rows, (first, last)))


def trade_off(records: Mapping[str, Record], source: str, target: str) -> Plot:
    """Forgetting and learning of each run during training, from the backbone to its end."""
    figure = empty_figure(height=460)
    for index, (label, record) in enumerate(records.items()):
        style = Style.numbered(KNOWN.get(record.method, len(KNOWN) + index))
        xs, ys = rises(record, (source, target))
        add_line(figure, xs, ys, style, name=label, notes=[hover(label)] * len(xs))
    forgetting = f"forgetting: bits per byte of {html.escape(source)}, change in %"
    figure.update_xaxes(title=forgetting, zeroline=True)
    figure.update_yaxes(title=f"learning: bits per byte of {html.escape(target)}, change in %")
    alt = f"Change on {source} (left is good) and on {target} (down is good)."
    return Plot(source, figure, alt)


def layers(section: Section) -> list[Plot]:
    """Share of wrong gates, then the size of the residue, by layer, for each point that has
    them."""
    plots = gates_by_layer(section)
    for point in section.rows:
        if values := layer_values(point, "residue_rms"):
            title = f"{section.row_name(point)}: size of the residue"
            plots.append(_layers(title, values, "root mean square"))
    return plots


def gates_by_layer(section: Section) -> list[Plot]:
    """Share of the gates that are open on source text and closed on target text, for each point
    that has gates."""
    plots = []
    for point in section.rows:
        values = {}
        for name, by_layer in layer_values(point, "gates_zero").items():
            role = point.first.sets[name].role
            wrong = {n: 100 * wrong_share(share, role) for n, share in by_layer.items()}
            values[f"{name}, {WRONG[role]}"] = wrong
        if values:
            title = f"{section.row_name(point)}: gates on the wrong side"
            plots.append(_layers(title, values, "% of tokens"))
            plots[-1].figure.update_yaxes(title="% of tokens, down is good", range=[-3, 103])
    return plots


def _layers(title: str, values: Mapping[str, Mapping[LayerNumber, float]], unit: str) -> Plot:
    figure = empty_figure(height=320)
    names = list(next(iter(values.values())))
    # The head comes after the last layer, wherever that is.
    last = max((n for n in names if isinstance(n, int)), default=-1)
    places = {n: n if isinstance(n, int) else last + 1 for n in names}
    for index, (set_name, by_layer) in enumerate(values.items()):
        notes = [
            hover(set_name, f"{layer_name(n)}: {number(v)} {unit}") for n, v in by_layer.items()
        ]
        xs, ys = [places[n] for n in by_layer], list(by_layer.values())
        add_line(figure, xs, ys, Style.numbered(index), name=set_name, notes=notes)
    legend_above(figure)
    every, end = 1 + (len(names) - 1) // MOST_TICKS, max(places.values())
    ticks = [n for n in names if (end - places[n]) % every == 0]
    named = {"tickvals": [places[n] for n in ticks], "ticktext": [str(n) for n in ticks]}
    figure.update_xaxes(title="layer", tickangle=0, **named)
    figure.update_yaxes(title=unit, rangemode="tozero")
    rows = tuple(RowName(layer_name(n)) for n in names)
    columns = tuple(numbers(name, each.values(), 3, unit) for name, each in values.items())
    alt = f"{title}, by layer, one line for each evaluation set."
    return Plot(title, figure, alt, Table(rows, columns, first="layer"))
