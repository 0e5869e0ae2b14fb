"""The numbers of a section as tables, for page, summary and screen readers alike."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from neutral_residues.config.data import Role
from neutral_residues.report.aggregate import Point, Section, Spread
from neutral_residues.report.formatting import NONE, number, short
from neutral_residues.report.load import Unfinished
from neutral_residues.report.pareto import (
    FORGETTING,
    EqualLearning,
    compare_with_neutral,
    lost_in,
    pareto_front,
)
from neutral_residues.results.set_result import SetResult

LOWER, HIGHER = "lower is better", "higher is better"
BITS = "bits/byte"


@dataclass(frozen=True)
class Cell:
    """A number and its text."""

    text: str
    value: float | None = None  # in the unit of its column; None (no number) sorts last


@dataclass(frozen=True)
class Column:
    """One column with its heading."""

    name: str
    cells: tuple[Cell, ...]
    unit: str = ""  # empty for words
    good: str = ""  # which direction is good; empty if neither is
    is_text: bool = False  # whether the cells are sentences

    @property
    def heading(self) -> str:
        """Name, unit and direction in one line."""
        name = f"{self.name} [{self.unit}]" if self.unit else self.name
        return f"{name}, {self.good}" if self.good else name

    def share(self, cell: Cell) -> float:
        """A number as a share of the largest in the column, in %: the bar behind a cost."""
        largest = max((cell.value or 0 for cell in self.cells), default=0)
        return 100 * (cell.value or 0) / largest if largest > 0 else 0


@dataclass(frozen=True)
class RowName:
    """The heading of a row."""

    name: str
    curve: str = ""  # name of the curve it belongs to, for its marker
    is_dim: bool = False  # whether it was measured but not chosen


@dataclass(frozen=True)
class Table:
    rows: tuple[RowName, ...]
    columns: tuple[Column, ...]
    first: str = "run"  # heading of the names of rows

    @property
    def lines(self) -> list[tuple[RowName, list[Cell]]]:
        """Row by row."""
        return [(row, [c.cells[n] for c in self.columns]) for n, row in enumerate(self.rows)]

    def without_empty_columns(self) -> "Table":
        """The table with only the columns that have a number."""
        kept = (c for c in self.columns if any(cell.value is not None for cell in c.cells))
        return replace(self, columns=tuple(kept))


def numbers(
    name: str,
    values: Iterable[float | Spread | None],
    digits: int | None = None,
    unit: str = "",
    good: str = "",
    *,
    signed: bool = False,
) -> Column:
    """A column of numbers; without `digits` each has three significant digits."""

    def cell(value: float | Spread | None) -> Cell:
        mean = value.mean if isinstance(value, Spread) else value
        return Cell(short(mean) if digits is None else number(value, digits, signed=signed), mean)

    return Column(name, tuple(map(cell, values)), unit, good)


def texts(name: str, values: Iterable[str], *, is_text: bool = False) -> Column:
    """A column of words."""
    return Column(name, tuple(map(Cell, values)), is_text=is_text)


def row_names(points: Iterable[Point], section: Section) -> tuple[RowName, ...]:
    """The name of each point, different from all other rows of the section."""
    return tuple(RowName(section.row_name(point), point.name) for point in points)


def points_table(section: Section) -> Table:
    """Every point: both sides, and the settings that distinguish it from others."""
    points = section.points
    front = pareto_front(points, lost_in(section).of)
    drops = [_percent(p.learning_share) for p in points]
    neutral = [p.neutral_percent for p in points]
    validation = [p.validation_bits for p in points]
    on_front = tuple(Cell("yes", 1) if point in front else Cell(NONE, 0) for point in points)
    columns = (
        _rates(points),
        numbers("share of what was learnt", [p.share for p in points]),
        _seeds(points),
        *_sides(section, points),
        numbers("of fine-tuning's drop", drops, 0, "%", HIGHER),
        numbers("source tokens with all gates 0", neutral, 1, "%", HIGHER),
        _same_answers(points),
        numbers("gates open on source", _wrong(points, "source"), 1, "%", LOWER),
        numbers("gates closed on target", _wrong(points, "target"), 1, "%", LOWER),
        *_source_kl(points),
        *_single_sets(section),
        _new_weights(points, good=LOWER),
        Column("on the Pareto front", on_front),
        numbers("bits per byte, validation", validation, 4, BITS, LOWER),
        _chosen(points),
    )
    rows = tuple(RowName(p.name, p.name, p.is_chosen is False) for p in points)
    return Table(rows, columns).without_empty_columns()


def summary_table(section: Section) -> Table:
    """The points that represent their curve, in few columns."""
    rows = section.rows
    columns = [_rates(rows), _seeds(rows), _new_weights(rows), *_sides(section, rows)]
    columns += _source_kl(rows)
    if any(point.same_answers_percent for point in rows):
        columns.append(_same_answers(rows))
    return Table(row_names(rows, section), tuple(columns))


def equal_learning_table(section: Section) -> Table | None:
    """What other methods lost where they have learnt as much as neutral residues; None without
    both."""
    comparison = compare_with_neutral(section)
    if comparison is None or not comparison.others:
        return None
    reference, others, lost = comparison.reference, comparison.others, comparison.lost
    at = f"{lost.name} at {number(reference.bits.mean)} bits per byte of {section.name}"
    digits, signed = (2, True) if lost is FORGETTING else (4, False)

    def cell(other: EqualLearning) -> Cell:
        if other.lost is None:
            return Cell(f"not reached, {number(other.lowest_bits)} at best")
        return Cell(number(other.lost, digits, signed=signed), other.lost)

    own = lost.of(reference)
    first = Cell(number(own, digits, signed=signed), own.mean)
    columns = [Column(at, (first, *map(cell, others)), lost.unit, LOWER)]
    times = [other.times for other in others]
    if any(times):
        columns.append(numbers("times as much", [1.0, *times], 1))
    names = (RowName(other.name, other.name) for other in others)
    return Table((*row_names([reference], section), *names), tuple(columns))


def beginnings_table(section: Section) -> Table | None:
    """For the beginnings of each set's texts, each read by itself, the change of bits per byte and,
    of source sets, the KL from the backbone; None where they were not measured."""
    points = [p for p in section.rows if all(run.record.beginnings for run in p.runs)]
    if not points:
        return None
    columns = []
    for name, text in points[0].first.beginnings.items():
        change = [_of_beginnings(point, name, lambda it: it.rise_percent) for point in points]
        columns.append(numbers(f"{name}, change", change, 2, "%", LOWER, signed=True))
        if text.role == "source":
            kl = [_of_beginnings(point, name, lambda it: it.kl_nats_per_token) for point in points]
            columns.append(numbers(f"{name}, KL", kl, 4, "nats per token", LOWER))
    return Table(row_names(points, section), tuple(columns))


def cost_table(section: Section) -> Table:
    """Costs of the first seed of each row; times are comparable only on the same machine."""
    costs = [point.first.cost for point in section.rows]

    def scaled(name: str, by: float = 1) -> list[float | None]:
        values = (getattr(cost, name) for cost in costs)
        return [None if value is None else value / by for value in values]

    weights = "million weights"
    columns = (
        numbers("step", scaled("step_seconds"), 3, "s", LOWER),
        numbers("throughput", scaled("tokens_per_second"), 0, "tokens/s", HIGHER),
        numbers("training", scaled("seconds", 60), 1, "min", LOWER),
        numbers("threads", scaled("threads")),
        numbers("peak memory", scaled("peak_memory_bytes", 2**30), 2, "GiB", LOWER),
        numbers("trained", scaled("trainable_weights", 1e6), None, weights, LOWER),
        numbers("added", scaled("new_weights", 1e6), None, weights, LOWER),
        numbers("stored", scaled("stored_weights", 1e6), None, weights, LOWER),
    )
    return Table(row_names(section.rows, section), columns).without_empty_columns()


def unfinished_table(runs: Sequence[Unfinished]) -> Table:
    """Runs without a result, and why."""
    columns = (
        texts("folder", [run.origin for run in runs]),
        texts("state", ["not done yet" if run.reason is None else "failed" for run in runs]),
        texts("reason", [run.reason or "" for run in runs], is_text=True),
    )
    return Table(tuple(RowName(run.label or run.origin) for run in runs), columns)


def _of_beginnings(
    point: Point, name: str, of: Callable[[SetResult], float | None]
) -> Spread | None:
    """Mean and deviation over the seeds; None if a seed has no such number."""
    found = [run.record.beginnings.get(name) for run in point.runs]
    values = [value for it in found if it is not None and (value := of(it)) is not None]
    return Spread.over(values) if len(values) == len(found) else None


def _rates(points: Sequence[Point]) -> Column:
    def cell(point: Point) -> Cell:
        if point.learning_rate is None and point.share is None:
            return Cell("recipe")
        return Cell(short(point.learning_rate), point.learning_rate)

    return Column("learning rate", tuple(map(cell, points)))


def _seeds(points: Sequence[Point]) -> Column:
    return numbers("seeds", [point.bits.n for point in points])


def _sides(section: Section, points: Sequence[Point]) -> list[Column]:
    name = section.name
    learning = [point.learning_percent for point in points]
    return [
        numbers("forgetting, mean", [p.forgetting for p in points], 2, "%", LOWER, signed=True),
        numbers(f"bits per byte, {name}", [p.bits for p in points], 4, BITS, LOWER),
        numbers(f"change, {name}", learning, 2, "%", LOWER, signed=True),
    ]


def _source_kl(points: Sequence[Point]) -> list[Column]:
    """How far predictions on source text are from the backbone's, if that was measured."""
    kl = [point.kl("source") for point in points]
    unit = "nats per token"
    return [numbers("KL on source, mean", kl, 4, unit, LOWER)] if any(kl) else []


def _same_answers(points: Sequence[Point]) -> Column:
    kept = [point.same_answers_percent for point in points]
    return numbers("chat answers kept word for word", kept, 0, "%", HIGHER)


def _wrong(points: Sequence[Point], role: Role) -> list[Spread | None]:
    return [point.wrong_gates_percent.get(role) for point in points]


def _single_sets(section: Section) -> list[Column]:
    """Each set separately, for a role that has several."""
    points, sources, targets = section.points, section.sources, section.targets
    columns = []
    for name in sources if len(sources) > 1 else ():
        values = [point.forgetting_by_set[name] for point in points]
        columns.append(numbers(f"forgetting, {name}", values, 2, "%", LOWER, signed=True))
    for name in targets if len(targets) > 1 else ():
        values = [point.bits_by_target[name] for point in points]
        columns.append(numbers(f"bits per byte, {name}", values, 4, BITS, LOWER))
    return columns


def _new_weights(points: Sequence[Point], good: str = "") -> Column:
    shares = [_percent(point.first.cost.new_share) for point in points]
    return numbers("new weights", shares, 1, "% of the backbone", good)


def _chosen(points: Sequence[Point]) -> Column:
    cells = {True: Cell("chosen", 2), False: Cell("not chosen", 0), None: Cell("only one", 1)}
    if all(point.is_chosen is None for point in points):
        cells = {None: Cell(NONE)}
    return Column("by validation", tuple(cells[point.is_chosen] for point in points))


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
