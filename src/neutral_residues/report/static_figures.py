"""Figures of the page as PNG and SVG, drawn with matplotlib: for papers, model cards and mail.

Fixed metadata and a fixed salt: the same records give the same files.
"""

import html
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neutral_residues.files import disk_errors
from neutral_residues.report.aggregate import Section
from neutral_residues.report.figure import Plot
from neutral_residues.report.gate_heatmap import STEPS, HeatText, HeatToken, heat_texts
from neutral_residues.report.plots import gates_by_layer, plane, trade_off, training
from neutral_residues.report.scatter import grammar, kept, razor
from neutral_residues.report.spliced import spliced_plots
from neutral_residues.report.style import DASHES, GREY, MARKERS, shortened
from neutral_residues.results.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_INSIDE = 6
"""A legend with more entries is next to the figure, where it hides no point."""
HEAT_COLUMNS, HEAT_TOKENS = 96, 240
"""Characters in a line of the heat map; how many tokens of a text are drawn."""
TEXT_HEIGHT, LAYER_HEIGHT = 0.22, 0.055
"""Inches of a line of the heat map: its characters, and a square for each layer."""


def prefixes(sections: Sequence[Section]) -> list[str]:
    """Prefix of the file names of each section; all different."""
    names: list[str] = []
    for number, section in enumerate(sections, start=1):
        name = re.sub(r"[^\w.-]+", "-", section.name).strip("-.")[:60] or "target"
        names.append(f"{name}-{number}" if name in names else name)
    return names


def draw_section(section: Section, folder: Path, prefix: str) -> dict[str, str]:
    """Draw all figures of a section as PNG and SVG: what each shows -> the file name of its PNG."""
    wide = 6.4 if len(section.curves) <= LEGEND_INSIDE else 8.6
    rows = (
        ("plane", "Forgetting against learning", [_plane(section)], wide, 4.8),
        ("kept", "KL from the backbone on source text", kept(section), wide, 4.8),
        ("training", "Bits per byte through training", training(section), 3.6, 3.4),
        ("layers", "Gates on the wrong side, by layer", gates_by_layer(section), 4.0, 3.4),
        ("spliced", "Gates after a switch of language", spliced_plots(section), 4.0, 3.4),
        ("grammar", "Tasks at equal bits per byte", grammar(section), 4.4, 3.6),
        ("razor", "Forgetting against the KL on the target", razor(section), 4.8, 3.8),
    )
    drawn = {}
    with _settings():
        figures = [
            (name, title, _panels(plots, *size)) for name, title, plots, *size in rows if plots
        ]
        if texts := heat_texts(section):
            figures.append(("gates", "Gates over text", _heat(texts)))
        for name, title, figure in figures:
            drawn[title] = f"{prefix}-{name}.png"
            _save(figure, folder / drawn[title])
            _save(figure, folder / f"{prefix}-{name}.svg")
    return drawn


def draw_trade_off(
    records: Mapping[str, Record], path: Path, *, sources: Sequence[str], target: str, title: str
) -> None:
    """Draw forgetting and learning of each run (label -> record) during training, from the backbone
    (0, 0) to its end, as PNG or SVG by the suffix of `path`: a panel for each source set. Left is
    good (nothing forgotten), down is good (learnt)."""
    plots = [trade_off(records, source, target) for source in sources]
    with _settings(), disk_errors(path):
        figure = _panels(plots, 4.6, 4.0)
        figure.suptitle(title)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(figure, path)


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib

    # parse_math: a dollar sign in a label or token is no formula.
    fixed = {
        "backend": "agg",
        "svg.hashsalt": "neutral-residues",
        "text.parse_math": False,
        "font.size": 9,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **fixed}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _save(figure: "Figure", path: Path) -> None:
    """Save without date and program name, so that the same record gives the same file."""
    metadata: dict[str, str | None] = {"Software" if path.suffix == ".png" else "Date": None}
    figure.savefig(path, dpi=150, metadata=metadata)


def _panels(plots: Sequence[Plot], width: float, height: float) -> "Figure":
    """Figures of the page next to each other, with one legend in the last."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width * len(plots), height), layout="constrained")
    for plot, axis in zip(plots, figure.subplots(1, len(plots), squeeze=False)[0], strict=True):
        for trace in plot.figure.data:
            _draw_trace(axis, trace)
        layout = plot.figure.layout
        axis.set_title(_shown(plot.title), fontsize=9)
        axis.set_xlabel(html.unescape(layout.xaxis.title.text))
        axis.set_ylabel(html.unescape(layout.yaxis.title.text) if plot is plots[0] else "")
        axis.set_xlim(layout.xaxis.range)
        axis.set_ylim(layout.yaxis.range)
        if layout.xaxis.tickvals is not None:
            axis.set_xticks(layout.xaxis.tickvals, layout.xaxis.ticktext)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(integer=_are_integers(plot)))
        if layout.xaxis.zeroline:
            axis.axvline(0, color=GREY, linewidth=0.8, zorder=0)
        _finish(axis, legend=plot is plots[-1])
    return figure


def _draw_trace(axis: "Axes", trace: Any) -> None:
    """Draw a trace of the page: line, markers (filled or open) and error bars."""
    line, dashes = trace.line.to_plotly_json(), {each.plotly: each.matplotlib for each in DASHES}
    style = {"color": line.get("color", trace.marker.color), "alpha": trace.opacity}
    style["linestyle"] = dashes[line.get("dash", "solid")] if "lines" in trace.mode else ""
    axis.plot(trace.x, trace.y, **style, linewidth=0.8 * line.get("width", 1))
    if "markers" not in trace.mode:
        return
    count, markers = len(trace.x), {each.plotly: each.matplotlib for each in MARKERS}
    symbols, sizes = _each(trace.marker.symbol, count), _each(trace.marker.size, count)
    for x, y, symbol, size in zip(trace.x, trace.y, symbols, sizes, strict=True):
        face = "white" if symbol.endswith("-open") else style["color"]
        form = {"marker": markers[symbol.removesuffix("-open")], "markersize": 0.6 * size}
        axis.plot(x, y, **form, color=style["color"], markerfacecolor=face)
    shown = {"xerr": trace.error_x, "yerr": trace.error_y}
    errors = {name: error.array for name, error in shown.items() if error.visible}
    if errors:
        errors |= {"fmt": "none", "ecolor": style["color"], "elinewidth": 1, "capsize": 2}
        axis.errorbar(trace.x, trace.y, **errors)
    if trace.showlegend is not False:
        marker = markers[symbols[0].removesuffix("-open")]
        label = _shown(html.unescape(trace.name))
        axis.plot([], [], **style, marker=marker, markersize=5, label=label)


def _are_integers(plot: Plot) -> bool:
    return all(float(x).is_integer() for trace in plot.figure.data for x in trace.x)


def _each(value: Any, count: int) -> Sequence[Any]:
    """One value for each point, where plotly also takes one for all."""
    return [value] * count if isinstance(value, str | int | float) else value


def _plane(section: Section) -> Plot:
    plot, sources = plane(section), html.escape(_shown(", ".join(section.sources), 60))
    title = f"forgetting: bits per byte of {sources}, change in %\n(left is good)"
    plot.figure.update_xaxes(title=title)
    return plot


def _heat(texts: Sequence[HeatText]) -> "Figure":
    from matplotlib.figure import Figure

    lines = [_lines(text.tokens[:HEAT_TOKENS]) for text in texts]
    sizes = zip(texts, lines, strict=True)
    heights = [0.45 + len(of_text) * _line_height(text) for text, of_text in sizes]
    figure = Figure(figsize=(8.0, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(texts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for text, of_text, axis in zip(texts, lines, axes, strict=True):
        _draw_heat_text(axis, text, of_text)
    return figure


def _lines(tokens: Sequence[HeatToken]) -> list[list[tuple[int, HeatToken]]]:
    """Tokens with the column where each begins, broken into lines."""
    lines: list[list[tuple[int, HeatToken]]] = []
    column, breaks = 0, True
    for token in tokens:
        if breaks or column + len(token.text) > HEAT_COLUMNS:
            lines.append([])
            column = 0
        lines[-1].append((column, token))
        column, breaks = column + len(token.text), token.breaks
    return lines


def _line_height(text: HeatText) -> float:
    return TEXT_HEIGHT + LAYER_HEIGHT * len(text.layers)


def _draw_heat_text(
    axis: "Axes", text: HeatText, lines: Sequence[Sequence[tuple[int, HeatToken]]]
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    letters, square = (h / _line_height(text) for h in (TEXT_HEIGHT, LAYER_HEIGHT))
    patches, faces, edges = [], [], []
    font: dict[str, Any] = {"family": "monospace", "fontsize": 9.2, "va": "baseline"}
    for row, line in enumerate(lines):
        for column, token in line:
            axis.text(column, row + 0.75 * letters, token.text[:HEAT_COLUMNS], **font)
            width = max(0.5, len(token.text) - 0.25)
            for index, level in enumerate(token.levels):
                corner = (column, row + letters + index * square)
                patches.append(Rectangle(corner, width, 0.75 * square))
                faces.append((0.0, 0.447, 0.698, level / STEPS))
                edges.append((0.66, 0.66, 0.63, 1.0 if level == 0 else 0.0))
    cells = PatchCollection(patches, facecolors=faces, edgecolors=edges, linewidths=0.4)
    cells.set_clip_on(False)  # the name of its clip path would come from an address in memory
    axis.add_collection(cells)
    axis.set_xlim(0, HEAT_COLUMNS)
    axis.set_ylim(max(1, len(lines)), 0)
    axis.set_axis_off()
    title = f"{_shown(text.row)} on {_shown(text.name)} ({text.kind})"
    closed = f"{100 * text.closed_share:.0f} % of gates exactly 0 (hollow)"
    axis.set_title(f"{title}: {closed}", fontsize=8, loc="left")


def _finish(axis: "Axes", *, legend: bool) -> None:
    axis.grid(visible=True, alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    figure = axis.get_figure(root=True)
    if legend and figure is not None and len(labels) > LEGEND_INSIDE:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    elif legend and labels:
        axis.legend(frameon=False, fontsize=8)


def _shown(text: str, length: int = 40) -> str:
    """A label that fits and that SVG can hold."""
    short = shortened("".join(c if c.isprintable() else "�" for c in text), length)
    # matplotlib's legends leave out what begins with "_"
    return f" {short}" if short.startswith("_") else short
