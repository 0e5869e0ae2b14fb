"""Why the numbers moved, by kind of token and by document; first seed of each row."""

import html
import textwrap

from neutral_residues.report.aggregate import Point, Section, sets_of
from neutral_residues.report.figure import Plot, empty_figure, hover, legend_above
from neutral_residues.report.formatting import number
from neutral_residues.report.style import KIND_COLOURS
from neutral_residues.report.tables import BITS, Table, numbers, row_names, texts
from neutral_residues.results.set_result import KINDS, Breakdown, TokenKind


def sets_broken_down(section: Section) -> dict[str, str]:
    """Sets that have a breakdown, with their roles: source sets first, by name."""
    return {
        name: role
        for role in ("source", "target")
        for name in sets_of(section.rows[0].first, role)
        if breakdowns(section, name)
    }


def breakdowns(section: Section, set_name: str) -> list[tuple[Point, Breakdown]]:
    """The breakdown of a set for every row that has one."""
    found = [(point, point.first.sets[set_name].breakdown) for point in section.rows]
    return [(point, breakdown) for point, breakdown in found if breakdown is not None]


def changes(breakdown: Breakdown) -> dict[TokenKind, float]:
    """The change in bits per byte of the set that each kind of token contributes."""
    return {c.kind: c.extended - c.backbone for c in breakdown.classes}


def change_plots(section: Section) -> list[Plot]:
    """For each set one bar for each run, stacked by kind of token; rises to the right, falls to the
    left."""
    return [_plot(section, name, role) for name, role in sets_broken_down(section).items()]


def worst_documents(section: Section) -> dict[str, Table]:
    """Set (with its role) -> the documents that got worst, for each run."""
    tables = {}
    for name, role in sets_broken_down(section).items():
        found = [(p, doc) for p, b in breakdowns(section, name) for doc in b.documents]
        docs = [doc for _, doc in found]
        columns = (
            numbers("document", [doc.number + 1 for doc in docs], 0),
            numbers("change", [d.extended - d.backbone for d in docs], 3, BITS, signed=True),
            numbers("backbone", [doc.backbone for doc in docs], 3, BITS),
            numbers("extended", [doc.extended for doc in docs], 3, BITS),
            texts("how it begins", [doc.excerpt for doc in docs], is_text=True),
        )
        rows = row_names([point for point, _ in found], section)
        tables[f"{name} ({role})"] = Table(rows, columns)
    return tables


def _plot(section: Section, set_name: str, role: str) -> Plot:
    found = [(point, changes(breakdown)) for point, breakdown in breakdowns(section, set_name)]
    rows = row_names([point for point, _ in found], section)
    kinds = [kind for kind in KINDS if any(kind in by_kind for _, by_kind in found)]
    wrapped = (map(html.escape, textwrap.wrap(row.name, 22)[:3]) for row in rows)
    labels = ["<br>".join(lines) for lines in wrapped]
    lines = max(label.count("<br>") + 1 for label in labels)
    figure = empty_figure(height=130 + (14 * lines + 12) * len(rows))
    for kind in kinds:
        bar = {"orientation": "h", "width": 0.7, "marker": {"color": KIND_COLOURS[kind]}}
        bar |= {"name": kind, "legendgroup": kind}
        # An empty bar, so that the legend stays when runs are hidden.
        figure.add_bar(x=[None], y=[labels[0]], **bar, meta={})
        for row, label, (_, by_kind) in zip(rows, labels, found, strict=True):
            change = by_kind.get(kind, 0.0)
            note = hover(row.name, f"{kind} {number(change, 4, signed=True)} {BITS}")
            own = {"hovertext": [note], "hoverinfo": "text", "meta": {"curve": row.curve}}
            figure.add_bar(x=[change], y=[label], **bar, **own, showlegend=False)
    figure.update_layout(barmode="relative")
    figure.update_yaxes(autorange="reversed", type="category")
    legend_above(figure)
    good = "left is good" if role == "source" else "left is learnt"
    figure.update_xaxes(title=f"bits per byte, {good}", zeroline=True)
    totals = [point.first.sets[set_name].rise_bits_per_byte for point, _ in found]
    by_column = {"all tokens": totals} | {k: [c.get(k) for _, c in found] for k in kinds}
    columns = (numbers(name, vs, 4, BITS, signed=True) for name, vs in by_column.items())
    table = Table(rows, tuple(columns))
    alt = f"Change of bits per byte on {set_name}, a bar for each run, stacked by kind of token."
    return Plot(f"{set_name} ({role})", figure, alt, table)
