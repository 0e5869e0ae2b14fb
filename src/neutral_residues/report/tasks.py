"""Tasks of a section: every run's change on every task, over seeds, with how sure it is.

Seeds see the same items, so an average over them does not make the interval over items narrower:
the ends shown are the means of the seeds' ends. Where a language has many tasks they are averaged
too; as their items differ, the half-widths add as squares.
"""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import neutral_residues.report.formatting as numbers
from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.languages import language_name
from neutral_residues.report.aggregate import Point, Section, Spread
from neutral_residues.report.tables import Cell, Column, Row, Table
from neutral_residues.results.record import TaskScore
from neutral_residues.results.wording import change_in_words, factor_of

MANY = 4
"""So many tasks of a language are averaged in a sentence; fewer are named."""


@dataclass(frozen=True)
class TaskResult:
    """One run on one task; shares in %.

    Attributes:
        point: the run, all its seeds.
        score: of the first seed: the task's name, metric, items, ...
        backbone: the backbone's score.
        extended: mean of the seeds' scores.
        difference: extended - backbone, over the seeds.
        low: lower end of its 95 % interval over the items, mean over the seeds.
        high: upper end.
    """

    point: Point
    score: TaskScore
    backbone: float
    extended: float
    difference: Spread
    low: float
    high: float

    @property
    def change(self) -> str:
        """In words."""
        return change_in_words(
            self.difference.mean, self.low, self.high, direction=self.score.direction
        )


def task_results(section: Section) -> list[TaskResult]:
    """By task, in the order of the records; runs in the order of the section.

    Raises:
        UserError: if two runs of one task were not given the same items.
    """
    by_task: dict[str, list[TaskResult]] = {}
    for point in section.rows:
        for result in _of_point(point):
            by_task.setdefault(result.score.name, []).append(result)
    for name, found in by_task.items():
        _check_same_items(name, found)
    return [result for found in by_task.values() for result in found]


def tasks_table(section: Section) -> Table | None:
    """All results; None without tasks."""
    found = task_results(section)
    if not found:
        return None
    columns = (
        Column("task"), Column("role"), Column("score"), Column("items"), Column("shots"), Column("prompts cut"),
        Column("backbone"), Column("extended"), Column("difference"), Column("95 % interval"), Column("p"),
        Column("seeds"),
    )  # fmt: skip
    cells = [_cells(result) for result in found]
    silent = {"role": "none", "shots": "0", "prompts cut": "0", "p": numbers.NONE}
    shown = [
        n
        for n, column in enumerate(columns)
        if any(row[n].text != silent.get(column.name) for row in cells)
    ]
    rows = [
        Row(numbers.row_name(r.point, section), tuple(row[n] for n in shown), r.point.name)
        for r, row in zip(found, cells, strict=True)
    ]
    return Table((Column("run"), *(columns[n] for n in shown)), tuple(rows))


def task_sentences(section: Section) -> list[str]:
    """One sentence for each run: how each language changed."""
    by_point: dict[str, list[TaskResult]] = {}
    for result in task_results(section):
        by_point.setdefault(numbers.row_name(result.point, section), []).append(result)
    return [f"{name} – {'; '.join(_by_language(found))}." for name, found in by_point.items()]


def _of_point(point: Point) -> Iterator[TaskResult]:
    names = dict.fromkeys(task.name for run in point.runs for task in run.record.tasks)
    for name in names:
        scores = [task for run in point.runs for task in run.record.tasks if task.name == name]
        if len({score.key for score in scores}) > 1:
            raise _other_items(name, point.name, point.name)
        factor = factor_of(scores[0])

        def mean(values: Sequence[float], factor: int = factor) -> float:
            return factor * statistics.fmean(values)

        yield TaskResult(
            point,
            scores[0],
            backbone=mean([s.backbone for s in scores]),
            extended=mean([s.extended for s in scores]),
            difference=Spread.of([factor * s.difference for s in scores]),
            low=mean([s.low for s in scores]),
            high=mean([s.high for s in scores]),
        )


def _check_same_items(name: str, found: Sequence[TaskResult]) -> None:
    for other in found[1:]:
        if other.score.key != found[0].score.key:
            raise _other_items(name, found[0].point.name, other.point.name)


def _other_items(name: str, one: str, other: str) -> UserError:
    return UserError(
        f"task {name} of {one} and of {other} does not compare: other items, prompts or limit",
        do="evaluate one of them again, or report them apart",
    )


def _cells(result: TaskResult) -> tuple[Cell, ...]:
    score = result.score
    digits = 1 if score.unit == "share" else 3
    unit = "%" if score.unit == "share" else f"{score.direction} is better"
    interval = (
        f"{numbers.number(result.low, digits, sign=True)} to"
        f" {numbers.number(result.high, digits, sign=True)}"
    )
    return (
        Cell(score.name),
        Cell(score.role),
        Cell(f"{score.metric} [{unit}]"),
        Cell(f"{score.num_items:,}", score.num_items),
        Cell(str(score.num_fewshot), score.num_fewshot),
        Cell(f"{score.num_truncated:,}", score.num_truncated),
        Cell(numbers.number(result.backbone, digits), result.backbone),
        Cell(numbers.number(result.extended, digits), result.extended),
        Cell(numbers.spread(result.difference, digits, sign=True), result.difference.mean),
        Cell(interval, result.low),
        Cell(_p_value(result), score.p_value if result.difference.n == 1 else None),
        Cell(str(result.difference.n), result.difference.n),
    )


def _p_value(result: TaskResult) -> str:
    """Of one seed; p-values of several do not average."""
    p_value = result.score.p_value
    if p_value is None or result.difference.n > 1:
        return numbers.NONE
    return "< 0.001" if p_value < 0.001 else numbers.number(p_value, 3)


def _by_language(found: Sequence[TaskResult]) -> Iterator[str]:
    """Each language's tasks, and the mean of many; scores that are no shares do not average."""
    groups: dict[str | None, list[TaskResult]] = {}
    for result in found:
        averages = result.score.unit == "share" and result.score.direction == "higher"
        groups.setdefault(language_name(result.score.language) if averages else None, []).append(
            result
        )
    for name, results in groups.items():
        if name is None or len(results) < MANY:
            words = ", ".join(f"{r.score.name} {r.change}" for r in results)
        else:
            half = math.sqrt(sum(((r.high - r.low) / 2) ** 2 for r in results)) / len(results)
            mean = statistics.fmean(r.difference.mean for r in results)
            change = change_in_words(mean, mean - half, mean + half, direction="higher")
            words = f"mean of {len(results)} tasks {change}"
        yield f"{name}: {words}" if name else words
