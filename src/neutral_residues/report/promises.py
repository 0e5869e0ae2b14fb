"""The promises of calibrated extensions and their costs, next to what was measured."""

from neutral_residues.report.aggregate import Section
from neutral_residues.report.formatting import number
from neutral_residues.report.tables import Cell, Column, RowName, Table, numbers
from neutral_residues.results.promise import CalibratedSet, Promise


def promises_table(section: Section) -> Table | None:
    """One row for each text that a promise of a calibrated run is about; None without any."""
    found = [
        (section.row_name(point), point.name, point.first.promise, text)
        for point in section.rows
        if point.first.promise is not None
        for text in point.first.promise.sets
    ]
    if not found:
        return None
    rows = tuple(RowName(f"{name}, {text.name}", curve) for name, curve, _, text in found)
    sentences = [Cell(promise.sentence) for _, _, promise, _ in found if promise]
    costs = [_cost(promise) for _, _, promise, _ in found if promise]
    texts = [text for _, _, _, text in found]
    columns = (
        Column("what is promised", tuple(sentences), is_text=True),
        _from_to("what it is about", [(100 * t.trained_loss, 100 * t.loss) for t in texts]),
        _from_to("tokens with all gates 0", [_exact(text) for text in texts]),
        numbers("share of learning lost", costs, 1, "%", "lower is better"),
    )
    return Table(rows, columns, first="run and text")


def _from_to(name: str, pairs: list[tuple[float, float]]) -> Column:
    cells = (Cell(f"{number(one, 2)} → {number(other, 2)}", other) for one, other in pairs)
    return Column(name, tuple(cells), "%, as trained → calibrated")


def _exact(text: CalibratedSet) -> tuple[float, float]:
    return 100 * text.trained_exact_share, 100 * text.exact_share


def _cost(promise: Promise) -> float | None:
    """The largest cost over the target texts."""
    points = [cost.points for cost in promise.costs if cost.points is not None]
    return max(points, default=None)
