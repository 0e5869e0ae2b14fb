"""Why the numbers moved: what each kind of token changed, changes that a few tokens carry, the
worst documents.

All of the first seed of each row.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import neutral_residues.report.formatting as numbers
from neutral_residues.evaluation.token_kinds import FEW_TOKENS, few_tokens_line
from neutral_residues.report.aggregate import Point, Section
from neutral_residues.report.plots import Plot, bare_figure, wrapped
from neutral_residues.report.tables import Cell, Column, Row, Table, by_set
from neutral_residues.results.set_result import KINDS, Breakdown, TokenKind

COLOURS: dict[TokenKind, str] = {
    "end of text": "#555555",
    "partial characters": "#8C8C8C",
    "white space": "#BFBFBF",
    "punctuation": "#F0E442",
    "digits": "#CC79A7",
    "other script": "#D55E00",
    "names": "#009E73",
    "frequent words": "#56B4E9",
    "rare words": "#0072B2",
}
UNIT = "bits/byte"


@dataclass(frozen=True)
class WorstDocument:
    """A document of a set that got worse (or better least) under one run.

    Attributes:
        run: name of the row.
        curve: name of its curve, for the marker.
        change, backbone, extended: bits per byte, as written.
    """

    run: str
    curve: str
    number: int
    change: str
    backbone: str
    extended: str
    excerpt: str


def change_plots(section: Section) -> list[Plot]:
    """For each set a bar for each run, stacked by kind of token: rises to the right, falls to the
    left."""
    return [_plot(name, role, section) for name, role in _sets(section).items()]


def concentrated(section: Section) -> list[str]:
    """A sentence for each change that a few token types carry."""
    return [
        f"{numbers.row_name(point, section)} on {few_tokens_line(name, breakdown)}."
        for point in section.rows
        for name, breakdown in _breakdowns(point).items()
        if breakdown.is_concentrated
    ]


def worst_documents(section: Section) -> dict[str, list[WorstDocument]]:
    """Set (with its role) -> its worst documents, run by run."""
    found: dict[str, list[WorstDocument]] = {}
    for name, role in _sets(section).items():
        for point, breakdown in _all(section, name):
            for document in breakdown.documents:
                change = numbers.number(document.extended - document.backbone, 3, sign=True)
                before, after = (
                    numbers.number(value) for value in (document.backbone, document.extended)
                )
                run = numbers.row_name(point, section)
                line = WorstDocument(
                    run, point.name, document.number, change, before, after, document.excerpt
                )
                found.setdefault(f"{name} ({role})", []).append(line)
    return found


def moved(section: Section) -> str:
    """The kinds of tokens that changed each set most, of the first row that knows; empty where none
    does."""
    point = next((point for point in section.rows if _breakdowns(point)), None)
    if point is None:
        return ""
    parts = []
    for name, breakdown in _breakdowns(point).items():
        changes = _changes(breakdown)
        largest = sorted(changes, key=lambda kind: -abs(changes[kind]))[:2]
        kinds = ", ".join(
            f"{kind} {numbers.number(changes[kind], 3, sign=True)}" for kind in largest
        )
        total = numbers.number(sum(changes.values()), 3, sign=True)
        parts.append(
            f"{name} {total}"
            f" ({kinds}{'; few tokens carry it' if breakdown.is_concentrated else ''})"
        )
    return f"What moved the bits per byte ({numbers.row_name(point, section)}): {'; '.join(parts)}."


def explanation() -> str:
    """When a change counts as carried by a few tokens."""
    return (
        "A change counts as carried by a few tokens where half of all rises and falls lies on at"
        " most one in a hundred of the different tokens, and these are less than"
        f" {numbers.share(FEW_TOKENS)} of the text."
    )


def _breakdowns(point: Point) -> dict[str, Breakdown]:
    """Evaluation set -> its breakdown, of the first seed."""
    sets = point.first.sets.items()
    return {name: found.breakdown for name, found in sets if found.breakdown is not None}


def _all(section: Section, set_name: str) -> list[tuple[Point, Breakdown]]:
    return [(p, b) for p in section.rows for n, b in _breakdowns(p).items() if n == set_name]


def _sets(section: Section) -> dict[str, str]:
    """Sets that were broken down, with their roles: source sets first, by name."""
    roles = {name: p.first.sets[name].role for p in section.rows for name in _breakdowns(p)}
    return dict(sorted(roles.items(), key=lambda item: (item[1] != "source", item[0])))


def _plot(name: str, role: str, section: Section) -> Plot:
    found = _all(section, name)
    labels = [wrapped(numbers.row_name(point, section)) for point, _ in found]
    lines = max(label.count("<br>") + 1 for label in labels)
    figure = bare_figure(height=130 + (14 * lines + 12) * len(found))
    kinds = [kind for kind in KINDS if any(c.kind == kind for _, b in found for c in b.classes)]
    for kind in kinds:
        # An empty bar for the legend, which is there whichever run is hidden.
        figure.add_bar(
            x=[None],
            y=[labels[0]],
            orientation="h",
            name=kind,
            marker={"color": COLOURS[kind]},
            legendgroup=kind,
        )
        for (point, breakdown), label in zip(found, labels, strict=True):
            change = _changes(breakdown).get(kind, 0.0)
            text = (
                f"<b>{html.escape(numbers.row_name(point, section))}</b><br>{kind}"
                f" {_signed(change)} {UNIT}"
            )
            figure.add_bar(
                x=[change], y=[label], orientation="h", width=[0.7], marker={"color": COLOURS[kind]}, name=kind,
                hovertext=[text], hoverinfo="text", legendgroup=kind, showlegend=False, meta={"curve": point.name},
            )  # fmt: skip
    figure.update_layout(
        barmode="relative",
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )
    good = "left is good" if role == "source" else "left is learnt"
    figure.update_xaxes(title=f"change of bits per byte, {good}", zeroline=True)
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    alt = f"Change of bits per byte on {name}, one bar for each run, stacked by kind of token."
    return Plot(f"why-{name}", f"{name} ({role})", figure, alt, _table(found, kinds, section))


def _table(
    found: Sequence[tuple[Point, Breakdown]], kinds: Sequence[TokenKind], section: Section
) -> Table:
    rows = []
    for point, breakdown in found:
        by_kind = _changes(breakdown)
        changes = [sum(by_kind.values()), *(by_kind.get(kind) for kind in kinds)]
        cells = tuple(Cell(_signed(change), change) for change in changes)
        rows.append(Row(numbers.row_name(point, section), cells, point.name))
    columns: tuple[Column, ...] = by_set("run", ["all tokens", *kinds], UNIT)
    return Table(columns, tuple(rows))


def _changes(breakdown: Breakdown) -> dict[TokenKind, float]:
    return {c.kind: c.extended - c.backbone for c in breakdown.classes}


def _signed(change: float | None) -> str:
    return numbers.number(change, 4, sign=True)
