"""Tasks of a section: every run's change on every task, over seeds, with its interval.

Seeds see the same items, so averaging over them does not narrow the interval over items: the ends
shown are the means of the seeds' ends.
"""

import html
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.report.aggregate import Point, Section, Spread, grouped
from neutral_residues.report.figure import Plot, add_points, empty_figure, error_bars, hover
from neutral_residues.report.formatting import NONE, number
from neutral_residues.report.style import shortened, styles
from neutral_residues.report.tables import Cell, Column, Table, numbers, row_names, texts
from neutral_residues.results.record import TaskScore
from neutral_residues.results.wording import change_in_words, factor_of


@dataclass(frozen=True)
class TaskResult:
    """One run on one task, over its seeds; shares in %."""

    point: Point
    score: TaskScore  # of the first seed: the task's name, metric, items, ...
    backbone: float
    extended: float
    difference: Spread  # extended - backbone
    low: float  # ends of its 95 % interval over the items
    high: float

    @property
    def is_share(self) -> bool:
        """Whether the score is the share of items answered correctly, in %."""
        return self.score.unit == "share"

    @property
    def change(self) -> str:
        """The change as text."""
        direction = self.score.direction
        return change_in_words(self.difference.mean, self.low, self.high, direction=direction)


def task_results(section: Section, *, main_only: bool = False) -> list[TaskResult]:
    """By task and metric, then by run; a UserError if a task was not given the same items
    everywhere. `main_only`: by the main metric of each task."""
    scores = [
        (point, score)
        for point in section.rows
        for run in point.runs
        for score in (run.record.main_scores if main_only else run.record.tasks)
    ]
    results = []
    for of_task in grouped(scores, lambda pair: (pair[1].name, pair[1].metric)):
        (point, first), *others = of_task
        for other, score in others:
            if score.key != first.key:
                raise UserError(
                    f"task {first.name} of {point.name} and of {other.name} does not compare:"
                    " other items, prompts or limit",
                    do="evaluate one of them again, or report them apart",
                )
        by_point = grouped(of_task, lambda pair: pair[0])
        results += [_over_seeds(seeds[0][0], [score for _, score in seeds]) for seeds in by_point]
    return results


def _over_seeds(point: Point, seeds: Sequence[TaskScore]) -> TaskResult:
    def values(name: str) -> list[float]:
        return [factor_of(seeds[0]) * getattr(seed, name) for seed in seeds]

    backbone, extended, low, high = (
        statistics.fmean(values(name)) for name in ("backbone", "extended", "low", "high")
    )
    difference = Spread.over(values("difference"))
    return TaskResult(point, seeds[0], backbone, extended, difference, low, high)


def tasks_table(section: Section) -> Table | None:
    """All results; None without tasks. Columns without information are left out."""
    found = task_results(section)
    if not found:
        return None
    scores = [result.score for result in found]
    unsaid = {"role": "none", "few-shot": "0", "truncated prompts": "0", "chance": NONE, "p": NONE}
    columns = (
        texts("task", [score.name for score in scores]),
        texts("role", [score.role for score in scores]),
        texts("score", map(_score_name, scores)),
        numbers("items", [score.num_items for score in scores], 0),
        numbers("few-shot", [score.num_fewshot for score in scores], 0),
        numbers("truncated prompts", [score.num_truncated for score in scores], 0),
        Column("chance", tuple(map(_chance, scores))),
        Column("backbone", tuple(_score(result, result.backbone) for result in found)),
        Column("extended", tuple(_score(result, result.extended) for result in found)),
        Column("difference", tuple(_score(r, r.difference, signed=True) for r in found)),
        Column("95 % interval", tuple(map(_interval, found))),
        Column("p", tuple(map(_p_value, found))),
        numbers("seeds", [result.difference.n for result in found]),
    )
    shown = [c for c in columns if any(cell.text != unsaid.get(c.name) for cell in c.cells)]
    return Table(row_names([result.point for result in found], section), tuple(shown))


def _score_name(score: TaskScore) -> str:
    return f"{score.metric} [{'%' if score.unit == 'share' else score.direction + ' is better'}]"


def _score(result: TaskResult, value: float | Spread, *, signed: bool = False) -> Cell:
    mean = value.mean if isinstance(value, Spread) else value
    return Cell(number(value, 1 if result.is_share else 3, signed=signed), mean)


def _chance(score: TaskScore) -> Cell:
    return Cell(NONE) if score.chance is None else Cell(number(100 * score.chance, 1), score.chance)


def _interval(result: TaskResult) -> Cell:
    low, high = (_score(result, end, signed=True).text for end in (result.low, result.high))
    return Cell(f"{low} to {high}", result.low)


def _p_value(result: TaskResult) -> Cell:
    """The p-value if there is one seed; those of several cannot be averaged."""
    p_value = result.score.p_value
    if p_value is None or result.difference.n > 1:
        return Cell(NONE)
    return Cell("< 0.001" if p_value < 0.001 else number(p_value, 3), p_value)


def task_plots(section: Section) -> list[Plot]:
    """Change on each right-or-wrong task with its 95 % interval; other tasks differ in scale."""
    found = [result for result in task_results(section, main_only=True) if result.is_share]
    if not found:
        return []
    names = list(dict.fromkeys(result.score.name for result in found))
    by_run = grouped(found, lambda result: result.point)
    figure = empty_figure(height=90 + len(names) * (24 + 15 * len(by_run)))
    look = styles(section.curves)
    for index, results in enumerate(by_run):
        run, point = section.row_name(results[0].point), results[0].point
        style = look[point.name]
        # Runs next to each other within their task, the first on top.
        offset = 0.7 * ((index + 0.5) / len(by_run) - 0.5)
        means = [result.difference.mean for result in results]
        above = [result.high - mean for result, mean in zip(results, means, strict=True)]
        below = [mean - result.low for result, mean in zip(results, means, strict=True)]
        ys = [names.index(result.score.name) + offset for result in results]
        notes = [_note(run, result) for result in results]
        marker = {"color": style.colour, "symbol": style.marker.plotly, "size": 9}
        more: dict[str, Any] = {"mode": "markers", "marker": marker}
        more["error_x"] = error_bars(above, below)
        add_points(figure, means, ys, name=run, notes=notes, curve=point.name, **more)
    title = "change, percentage points, right is good"
    figure.update_xaxes(title=title, zeroline=True)
    labels = [html.escape(shortened(name)) for name in names]
    ticks = {"tickvals": list(range(len(names))), "ticktext": labels}
    figure.update_yaxes(**ticks, range=[len(names) - 0.5, -0.5])
    alt = "Change of each run on each task with its 95 % interval; the line at 0 is the backbone."
    return [Plot("Change on tasks, with 95 % intervals", figure, f"{alt} The table has all.")]


def _note(run: str, result: TaskResult) -> str:
    before, after = number(result.backbone, 1), number(result.extended, 1)
    return hover(run, f"{result.score.name}: {before} to {after} %", result.change)
