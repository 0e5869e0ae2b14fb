"""Two measurements of each run against each other, one mark for each point of the section."""

import html
import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from neutral_residues.config.data import Role
from neutral_residues.report.aggregate import Point, Section, Spread
from neutral_residues.report.figure import Plot, add_points, empty_figure, error_bars, hover
from neutral_residues.report.formatting import number
from neutral_residues.report.style import GREY, limits, shortened, styles
from neutral_residues.report.tables import BITS, Column, RowName, Table, numbers
from neutral_residues.results.record import TaskScore
from neutral_residues.results.wording import factor_of

if TYPE_CHECKING:
    import plotly.graph_objects as go

NATS = "nats per token"


def grammar(section: Section) -> list[Plot]:
    """For each task on the target, its score against bits per byte: which run scores better at
    equal bits per byte. Only scores that are shares of items, and that two points have."""
    plots = []
    for task, by_point in _target_tasks(section).items():
        if len(by_point) < 2:
            continue
        scores = {
            point: Spread.over([factor_of(score) * score.extended for score in found])
            for point, found in by_point.items()
        }
        backbone = statistics.fmean(
            factor_of(score) * score.backbone for found in by_point.values() for score in found
        )
        bits = {point: point.bits for point in scores}
        figure = _scatter(section, bits, scores, start=(section.backbone_bits, backbone))
        # Without the backbone, as in the plane: the runs would be too close together.
        near = [point for point in section.cropped_points if point in scores] or list(scores)
        figure.update_xaxes(range=limits([bits[point].mean for point in near]))
        figure.update_yaxes(range=limits([scores[point].mean for point in near]))
        title = f"bits per byte, {html.escape(shortened(section.name))}, left is good"
        figure.update_xaxes(title=title)
        figure.update_yaxes(title=f"{html.escape(shortened(task))} [%], up is good")
        columns = (
            numbers(f"bits per byte, {section.name}", bits.values(), 4, BITS, "lower is better"),
            numbers(task, scores.values(), 1, "%", "higher is better"),
        )
        alt = f"Score on {task} against bits per byte on {section.name}, one mark for each point."
        plots.append(Plot(f"{task} at equal bits per byte", figure, alt, _table(scores, columns)))
    return plots


def kept(section: Section) -> list[Plot]:
    """Bits per byte on the target against the KL divergence from the backbone on source text, if
    that was measured. Unlike the change of bits per byte it is 0 for nothing but the backbone's own
    predictions, also where any training makes the source text easier."""
    kl = _kl(section, "source")
    if not kl:
        return []
    bits = {point: point.bits for point in kl}
    columns = (
        numbers("KL on source, mean", kl.values(), 4, NATS, "lower is better"),
        numbers(f"bits per byte, {section.name}", bits.values(), 4, BITS, "lower is better"),
    )
    figure = _scatter(section, kl, bits, start=(0.0, section.backbone_bits))
    near = [point for point in section.cropped_points if point in kl] or list(kl)
    figure.update_yaxes(range=limits([bits[point].mean for point in near]))
    figure.update_xaxes(title="KL on source [nats], left is good", zeroline=True)
    name = html.escape(shortened(section.name))
    figure.update_yaxes(title=f"bits per byte, {name}, down is good")
    alt = f"Bits per byte on {section.name} against the KL divergence on source text."
    return [Plot("Learnt, and what stayed", figure, alt, _table(kl, columns))]


def razor(section: Section) -> list[Plot]:
    """Forgetting against the KL divergence from the backbone on the target sets, if that was
    measured: how far a model moved, and what it lost."""
    kl = _kl(section, "target")
    if not kl:
        return []
    forgetting = {point: point.forgetting for point in kl}
    columns = (
        numbers("KL on the target", kl.values(), 3, NATS),
        numbers("forgetting, mean", forgetting.values(), 2, "%", "lower is better", signed=True),
    )
    figure = _scatter(section, kl, forgetting, start=(0.0, 0.0))
    name = html.escape(shortened(section.name, 20))
    figure.update_xaxes(title=f"KL on {name}, nats per token")
    figure.update_yaxes(title="forgetting [%], down is good", zeroline=True)
    alt = f"Forgetting against the KL divergence from the backbone on {section.name}."
    title = "Moved on the target, lost on the source"
    return [Plot(title, figure, alt, _table(kl, columns))]


def _target_tasks(section: Section) -> dict[str, dict[Point, list[TaskScore]]]:
    """Task -> point -> the score of each seed."""
    found: dict[str, dict[Point, list[TaskScore]]] = {}
    for point in section.points:
        for score in (score for run in point.runs for score in run.record.main_scores):
            if score.role == "target" and score.unit == "share" and score.direction == "higher":
                found.setdefault(score.name, {}).setdefault(point, []).append(score)
    return found


def _kl(section: Section, role: Role) -> dict[Point, Spread]:
    """Of each point that was measured so."""
    return {point: kl for point in section.points if (kl := point.kl(role)) is not None}


def _scatter(
    section: Section,
    xs: Mapping[Point, Spread],
    ys: Mapping[Point, Spread],
    *,
    start: tuple[float, float],
) -> "go.Figure":
    """Marks in the colours of the section, with error bars of one standard deviation over seeds,
    and a star for the backbone."""
    figure, look = empty_figure(height=380), styles(section.curves)
    for curve in section.curves:
        points = [point for point in curve.points if point in xs]
        if not points:
            continue
        style = look[curve.name]
        marker = {"color": style.colour, "symbol": style.marker.plotly, "size": 10}
        notes = [_note(point, xs[point], ys[point]) for point in points]
        add_points(
            figure,
            [xs[point].mean for point in points],
            [ys[point].mean for point in points],
            name=curve.name,
            notes=notes,
            curve=curve.name,
            mode="markers",
            cliponaxis=False,
            marker=marker,
            error_x=error_bars([xs[point].deviation for point in points]),
            error_y=error_bars([ys[point].deviation for point in points]),
        )
    star: dict[str, Any] = {"marker": {"symbol": "star", "size": 13, "color": GREY}}
    star |= {"name": "backbone", "mode": "markers", "showlegend": False, "cliponaxis": False}
    add_points(figure, [start[0]], [start[1]], notes=[hover("backbone")], **star)
    figure.update_xaxes(range=limits([start[0], *(x.mean for x in xs.values())]))
    figure.update_yaxes(range=limits([start[1], *(y.mean for y in ys.values())]))
    return figure


def _note(point: Point, x: Spread, y: Spread) -> str:
    return hover(point.full_name, f"{number(y, 2)} at {number(x, 4)}")


def _table(points: Iterable[Point], columns: tuple[Column, ...]) -> Table:
    return Table(tuple(RowName(point.full_name, point.name) for point in points), columns)
