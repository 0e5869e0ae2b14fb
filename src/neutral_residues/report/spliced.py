"""Text that switches language: what the switch costs each run, and which gates close again."""

from collections.abc import Callable

from neutral_residues.report.aggregate import Point, Section, Spread
from neutral_residues.report.figure import Plot, add_line, empty_figure, hover, legend_above
from neutral_residues.report.formatting import number
from neutral_residues.report.style import Style
from neutral_residues.report.tables import (
    BITS,
    HIGHER,
    LOWER,
    Column,
    RowName,
    Table,
    numbers,
    row_names,
)
from neutral_residues.results.record import Record
from neutral_residues.results.spliced import LATER, AfterSwitch


def spliced_table(section: Section) -> Table | None:
    """For both directions, bits per byte after the switch, and the change against the backbone
    there and in the text alone; None without measurements."""
    points = _measured(section)
    if not points:
        return None
    columns: list[Column] = []
    for name in _directions(points[0].first):
        start = name.partition(" ")[0]

        def each(of: Callable[[AfterSwitch], float], name: str = name) -> list[Spread]:
            return [_spread(point, name, of) for point in points]

        bits = each(lambda found: found.extended_bits_per_byte)
        after = each(lambda found: found.rise_percent)
        alone = each(lambda found: found.alone_rise_percent)
        columns += [
            numbers(name, bits, 4, BITS, LOWER),
            numbers(f"{name}, change", after, 2, "%", LOWER, signed=True),
            numbers(f"{start} alone, change", alone, 2, "%", LOWER, signed=True),
        ]
    for name, good in zip(_directions(points[0].first), (HIGHER, LOWER), strict=True):
        closed = [_closed_later(point, name) for point in points]
        columns.append(numbers(f"{name}, gates closed from token {LATER} on", closed, 1, "%", good))
    return Table(row_names(points, section), tuple(columns)).without_empty_columns()


def spliced_plots(section: Section) -> list[Plot]:
    """Share of gates that are exactly 0, by tokens since the switch, for each row that has
    gates."""
    return [
        _plot(section.row_name(point), point)
        for point in _measured(section)
        if all(found.gates for found in _directions(point.first).values())
    ]


def _plot(row: str, point: Point) -> Plot:
    figure, columns = empty_figure(height=320), []
    titles = [gates.title for gates in next(iter(_directions(point.first).values())).gates]
    for index, name in enumerate(_directions(point.first)):
        shares = [_closed_percent(point, name, title) for title in titles]
        pairs = zip(titles, shares, strict=True)
        notes = [hover(name, f"{t} tokens since the switch: {number(s, 1)} %") for t, s in pairs]
        xs = list(range(len(titles)))
        add_line(figure, xs, shares, Style.numbered(index), name=name, notes=notes)
        columns.append(numbers(name, shares, 1, "% of gates"))
    legend_above(figure)
    ticks = {"tickvals": list(range(len(titles))), "ticktext": titles}
    figure.update_xaxes(title="tokens since the switch", **ticks)
    figure.update_yaxes(title="% of gates exactly 0", range=[-3, 103])
    rows = tuple(RowName(title) for title in titles)
    alt = f"{row}: share of closed gates by tokens since a switch of language, each direction."
    table = Table(rows, tuple(columns), first="tokens since the switch")
    return Plot(f"{row}: gates after a switch", figure, alt, table)


def _measured(section: Section) -> list[Point]:
    return [p for p in section.rows if all(run.record.spliced is not None for run in p.runs)]


def _directions(record: Record) -> dict[str, AfterSwitch]:
    return record.spliced.directions if record.spliced else {}


def _spread(point: Point, name: str, of: Callable[[AfterSwitch], float]) -> Spread:
    """Mean and deviation of one direction over the seeds."""
    return Spread.over([of(_directions(run.record)[name]) for run in point.runs])


def _closed_later(point: Point, name: str) -> Spread | None:
    """Share of gates that are exactly 0 from token `LATER` on, in %; None without gates."""
    shares = [_directions(run.record)[name].closed_share_later for run in point.runs]
    known = [100 * share for share in shares if share is not None]
    return Spread.over(known) if len(known) == len(shares) else None


def _closed_percent(point: Point, name: str, since: str) -> float:
    """Share of gates that are exactly 0 in the range `since` of tokens after the switch, in %, mean
    over the seeds."""

    def of(found: AfterSwitch) -> float:
        return next(100 * gates.closed_share for gates in found.gates if gates.title == since)

    return _spread(point, name, of).mean
