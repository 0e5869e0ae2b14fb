"""The promises of calibrated extensions and their costs, next to what was measured."""

from neutral_residues.report.aggregate import Section
from neutral_residues.report.formatting import number
from neutral_residues.report.tables import Cell, Column, RowName, Table, numbers, texts
from neutral_residues.results.promise import CalibratedSet, Promise
from neutral_residues.results.record import Record


def promises_table(section: Section) -> Table | None:
    """One row for each text that a promise of a calibrated run is about; None without any."""
    found = [
        (point, promise, text)
        for point in section.rows
        if (promise := point.first.promise or point.first.measured_promise) is not None
        for text in promise.sets
    ]
    if not found:
        return None
    rows = (RowName(f"{section.row_name(it)}, {text.name}", it.name) for it, _, text in found)
    sentences = (promise.sentence for _, promise, _ in found)
    costs = [_cost(promise) for _, promise, _ in found]
    about = [text for _, _, text in found]
    columns = (
        texts("what is promised", sentences, is_text=True),
        _from_to("what it is about", [(100 * it.trained_loss, 100 * it.loss) for it in about]),
        _from_to("tokens with all gates 0", [_exact(text) for text in about]),
        numbers("share of learning lost", costs, 1, "%", "lower is better"),
        texts("other numbers", (_measured(it.first) for it, _, _ in found), is_text=True),
    )
    return Table(tuple(rows), columns, first="run and text")


def _measured(record: Record) -> str:
    """With which thresholds the record was measured."""
    if record.is_current:
        return "with these thresholds"
    if record.measured_promise is None:
        return "as trained, before it was calibrated"
    if record.promise is None:
        return "with these thresholds, removed since"
    return "with earlier thresholds"


def _from_to(name: str, pairs: list[tuple[float, float]]) -> Column:
    cells = (Cell(f"{number(one, 2)} → {number(other, 2)}", other) for one, other in pairs)
    return Column(name, tuple(cells), "%, as trained → calibrated")


def _exact(text: CalibratedSet) -> tuple[float, float]:
    return 100 * text.trained_exact_share, 100 * text.exact_share


def _cost(promise: Promise) -> float | None:
    """The largest cost over the target texts."""
    points = [cost.points for cost in promise.costs if cost.points is not None]
    return max(points, default=None)
