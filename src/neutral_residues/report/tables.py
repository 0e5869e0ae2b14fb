"""The numbers of a section as tables, for page, summary and screen readers alike."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import neutral_residues.report.formatting as numbers
from neutral_residues.report.aggregate import LEARNING_RATE, Point, Section, Spread
from neutral_residues.report.pareto import compare, pareto_front

LOWER, HIGHER, NEITHER = "lower is better", "higher is better", ""


@dataclass(frozen=True)
class Column:
    """Heading of a column.

    Attributes:
        name: what it holds.
        unit: of its numbers; empty for words.
        good: which direction is good; empty where neither is.
    """

    name: str
    unit: str = ""
    good: str = NEITHER

    @property
    def text(self) -> str:
        """All of it in one line."""
        return ", ".join(
            part
            for part in (f"{self.name} [{self.unit}]" if self.unit else self.name, self.good)
            if part
        )


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        text: as people read it.
        value: as it sorts; None sorts last.
    """

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Row:
    """One line.

    Attributes:
        name: first entry, the line's heading.
        curve: name of the curve it belongs to, for its marker; empty for none.
        cells: the other entries.
        is_dim: whether it was measured but not chosen.
    """

    name: str
    cells: tuple[Cell, ...]
    curve: str = ""
    is_dim: bool = False


@dataclass(frozen=True)
class Table:
    """Headings and lines; the first heading is that of the names."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def points_table(section: Section) -> Table:
    """Every point: both sides, with what set it apart."""
    fields = _point_fields(section)
    rows = [
        Row(p.name, tuple(cells[index] for _, cells in fields), p.name, p.is_chosen is False)
        for index, p in enumerate(section.points)
    ]
    return Table((Column("run"), *(column for column, _ in fields)), tuple(rows))


def summary_table(section: Section) -> Table:
    """The points that stand for their curve, in few columns."""
    rows = section.rows
    fields = [
        (Column("learning rate"), [Cell(numbers.rate(p), p.learning_rate) for p in rows]),
        (Column("seeds"), [Cell(str(p.bits.n), p.bits.n) for p in rows]),
        (Column("new weights", "%"), [_new_weights(p) for p in rows]),
        *_sides(section, rows),
    ]
    cells = zip(*(cells for _, cells in fields), strict=True)
    lines = [
        Row(numbers.row_name(p, section), line, p.name) for p, line in zip(rows, cells, strict=True)
    ]
    return Table((Column("run"), *(column for column, _ in fields)), tuple(lines))


def equal_learning_table(section: Section) -> Table | None:
    """What every other method forgets where it has learnt as much as neutral residues; None without
    either."""
    comparison = compare(section)
    if comparison is None or not comparison.others:
        return None
    ours = comparison.ours
    rows = [
        Row(
            numbers.row_name(ours, section),
            (_cell(ours.forgetting, 2, sign=True), Cell("1", 1)),
            ours.name,
        )
    ]
    for other in comparison.others:
        if other.forgetting is None:
            cells = (
                Cell(f"does not learn as much ({numbers.number(other.lowest_bits)} bits per byte)"),
                Cell("-"),
            )
        else:
            times = other.forgetting / ours.forgetting.mean if ours.forgetting.mean > 0 else None
            forgets = Cell(numbers.number(other.forgetting, 2, sign=True), other.forgetting)
            cells = (forgets, Cell(numbers.number(times, 1), times))
        rows.append(Row(other.name, cells, other.name))
    forgetting = Column(
        f"forgetting at {numbers.number(ours.bits.mean)} bits per byte of {section.name}",
        "%",
        LOWER,
    )
    return Table((Column("run"), forgetting, Column("times as much")), tuple(rows))


def cost_table(section: Section) -> Table:
    """What each point took: medians and means of its first seed; times compare only on the same
    machine."""
    columns = (
        Column("run"),
        Column("step", "s", LOWER),
        Column("throughput", "tokens/s", HIGHER),
        Column("training", "min", LOWER),
        Column("threads", "", NEITHER),
        Column("peak memory", "GiB", LOWER),
        Column("trained", "million weights", LOWER),
        Column("added", "million weights", LOWER),
        Column("stored", "million weights", LOWER),
    )
    cells = [_cost_cells(p) for p in section.rows]
    known = [n for n in range(len(columns) - 1) if any(row[n].value is not None for row in cells)]
    rows = [
        Row(numbers.row_name(p, section), tuple(row[n] for n in known), p.name)
        for p, row in zip(section.rows, cells, strict=True)
    ]
    return Table((columns[0], *(columns[n + 1] for n in known)), tuple(rows))


def rates_table(section: Section) -> Table | None:
    """Learning rates that were tried, and what chose among them; None where no curve has
    several."""
    tried = [c for c in section.curves if c.axis == LEARNING_RATE and len(c.points) > 1]
    rows = [
        Row(
            curve.name,
            (
                Cell(numbers.rate(p), p.learning_rate),
                Cell(str(p.bits.n), p.bits.n),
                _cell(p.validation_bits, 4),
                Cell("chosen" if p.is_chosen else "", float(bool(p.is_chosen))),
            ),
            curve.name,
            p.is_chosen is False,
        )
        for curve in tried
        for p in curve.points
    ]
    rate, chosen = Column("learning rate"), Column("chosen")
    validation = Column("bits per byte on target text to validate on", "bits/byte", LOWER)
    return (
        Table((Column("run"), rate, Column("seeds"), validation, chosen), tuple(rows))
        if rows
        else None
    )


def neutral_tokens(point: Point) -> Spread | None:
    """Share of source tokens with every gate exactly 0, mean over the source sets, in %; None
    without block gates."""
    values = [
        [
            found.neutral_share
            for found in run.record.sets.values()
            if found.role == "source" and found.neutral_share is not None
        ]
        for run in point.runs
    ]
    return Spread.of([100 * statistics.fmean(v) for v in values]) if all(values) else None


def _point_fields(section: Section) -> list[tuple[Column, list[Cell]]]:
    """Columns of the table of points with their cells; a column that would say nothing is left
    out."""
    points = section.points
    front = pareto_front(section.points)
    fields = [
        (Column("learning rate"), [Cell(numbers.rate(p), p.learning_rate) for p in points]),
        (Column("share of the average"), [Cell(_plain(p.share), p.share) for p in points]),
        (Column("seeds"), [Cell(str(p.bits.n), p.bits.n) for p in points]),
        *_sides(section, points),
        (
            Column("of fine-tuning's drop", "%", HIGHER),
            [Cell(numbers.share(p.learning_share), p.learning_share) for p in points],
        ),
        (
            Column("source tokens with all gates 0", "%", HIGHER),
            [_cell(neutral_tokens(p), 1) for p in points],
        ),
        *_single_sets(section),
        (Column("new weights", "% of the backbone", LOWER), [_new_weights(p) for p in points]),
        (
            Column("on the Pareto front"),
            [Cell("yes", 1) if p in front else Cell(numbers.NONE, 0) for p in points],
        ),
    ]
    if any(p.is_chosen is not None for p in points):
        chosen = {True: Cell("chosen", 2), False: Cell("not chosen", 0), None: Cell("only one", 1)}
        fields.append((Column("by validation"), [chosen[p.is_chosen] for p in points]))
    return [
        (column, cells) for column, cells in fields if any(cell.value is not None for cell in cells)
    ]


def _sides(section: Section, points: Sequence[Point]) -> list[tuple[Column, list[Cell]]]:
    return [
        (
            Column("forgetting, mean", "%", LOWER),
            [_cell(p.forgetting, 2, sign=True) for p in points],
        ),
        (
            Column(f"bits per byte, {section.name}", "bits/byte", LOWER),
            [_cell(p.bits, 4) for p in points],
        ),
        (
            Column(f"change, {section.name}", "%", LOWER),
            [_cell(p.learning_percent, 2, sign=True) for p in points],
        ),
    ]


def _single_sets(section: Section) -> list[tuple[Column, list[Cell]]]:
    """Each set singly, on a side that has several."""
    points, sources, targets = section.points, section.sources, section.targets
    forgetting = [
        (
            Column(f"forgetting, {s}", "%", LOWER),
            [_cell(p.forgetting_by_set[s], 2, sign=True) for p in points],
        )
        for s in (sources if len(sources) > 1 else ())
    ]
    learning = [
        (
            Column(f"bits per byte, {t}", "bits/byte", LOWER),
            [_cell(p.target_by_set[t], 4) for p in points],
        )
        for t in (targets if len(targets) > 1 else ())
    ]
    return [*forgetting, *learning]


def _cost_cells(point: Point) -> tuple[Cell, ...]:
    cost = point.first.cost
    minutes = None if cost.seconds is None else cost.seconds / 60
    return (
        Cell(numbers.number(cost.step_seconds, 3), cost.step_seconds),
        Cell(numbers.number(cost.tokens_per_second, 0), cost.tokens_per_second),
        Cell(numbers.number(minutes, 1), minutes),
        Cell(_plain(cost.threads), cost.threads),
        Cell(numbers.gibibytes(cost.peak_memory_bytes), cost.peak_memory_bytes),
        Cell(numbers.millions(cost.trainable_weights), cost.trainable_weights),
        Cell(numbers.millions(cost.new_weights), cost.new_weights),
        Cell(numbers.millions(cost.stored_weights), cost.stored_weights),
    )


def _cell(value: Spread | None, digits: int, *, sign: bool = False) -> Cell:
    return Cell(numbers.spread(value, digits, sign=sign), None if value is None else value.mean)


def _new_weights(point: Point) -> Cell:
    share = point.new_share
    return Cell(numbers.NONE if share is None else numbers.number(100 * share, 1), share)


def _plain(value: float | None) -> str:
    return numbers.NONE if value is None else f"{value:g}"


def by_set(name: str, sets: Sequence[str], unit: str) -> tuple[Column, ...]:
    """Headings for a table with one column for each evaluation set."""
    return (Column(name), *(Column(s, unit) for s in sets))
