"""The figures of a section as PNG and SVG, drawn with matplotlib: for papers, model cards and mail.

Fixed metadata and a fixed salt: the same records give the same files.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import neutral_residues.report.formatting as numbers
from neutral_residues.report.aggregate import Section
from neutral_residues.report.curves import courses, layer_values, sets_in_curves
from neutral_residues.report.gate_heatmap import STEPS, HeatText, HeatToken, heat_texts
from neutral_residues.report.pareto import pareto_front
from neutral_residues.report.style import COLOURS, DASHES, MARKERS, limits, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#8C8C8C"
LEGEND_INSIDE = 6
"""A longer legend stands beside the figure, where it hides no point."""
HEAT_COLUMNS, HEAT_TOKENS = 96, 240
"""Letters in a line of the heat map; how many tokens of a text are drawn."""


def prefixes(sections: Sequence[Section]) -> list[tuple[Section, str]]:
    """How the file names of each section begin; no two alike."""
    taken: dict[str, Section] = {}
    for number, section in enumerate(sections, start=1):
        name = re.sub(r"[^\w.-]+", "-", section.name).strip("-.")[:60] or "target"
        taken[f"{name}-{number}" if name in taken else name] = section
    return [(section, name) for name, section in taken.items()]


def draw_pictures(section: Section, folder: Path, prefix: str) -> dict[str, str]:
    """Draw all pictures of a section as PNG and SVG.

    Returns:
        What each shows -> the file name of its PNG.
    """
    drawers: dict[str, tuple[str, Callable[[Section], Figure | None]]] = {
        "plane": ("Forgetting against learning", _plane),
        "training": ("Bits per byte through training", _training),
        "layers": ("Gates that are exactly 0, by layer", _layers),
        "gates": ("Gates over text", _heat),
    }
    drawn = {}
    with _settings():
        for name, (title, draw) in drawers.items():
            figure = draw(section)
            if figure is not None:
                drawn[title] = f"{prefix}-{name}.png"
                figure.savefig(folder / drawn[title], dpi=150, metadata={"Software": None})
                figure.savefig(folder / f"{prefix}-{name}.svg", metadata={"Date": None})
    return drawn


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib

    # parse_math: a dollar in a label or token is a dollar.
    fixed = {
        "svg.hashsalt": "neutral-residues",
        "text.parse_math": False,
        "font.size": 9,
        "axes.axisbelow": True,
    }
    with (
        matplotlib.rc_context({**matplotlib.rcParamsDefault, **fixed, "backend": "agg"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _new_figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _plane(section: Section) -> "Figure":
    figure = _new_figure(6.4 if len(section.curves) <= LEGEND_INSIDE else 8.6, 4.8)
    axis, style = figure.add_subplot(), looks(section.curves)
    for curve in section.curves:
        look = style[curve.name]
        xs, ys = [p.forgetting.mean for p in curve.points], [p.bits.mean for p in curve.points]
        axis.plot(xs, ys, color=look.colour, linestyle=look.picture_dash, linewidth=1.2, alpha=0.7)
        for point, x, y in zip(curve.points, xs, ys, strict=True):
            open_ = point.is_chosen is False
            axis.errorbar(
                x, y, xerr=point.forgetting.deviation, yerr=point.bits.deviation, fmt=look.picture_marker,
                color=look.colour, markerfacecolor="white" if open_ else look.colour, markersize=5 if open_ else 8,
                capsize=2, linewidth=1, label=_shown(curve.name) if point is curve.points[0] else None,
            )  # fmt: skip
    front = pareto_front(section.points)
    axis.plot(
        [p.forgetting.mean for p in front],
        [p.bits.mean for p in front],
        ":",
        color=GREY,
        linewidth=1,
        zorder=1,
    )
    axis.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    xs, ys = (
        [0.0, *(p.forgetting.mean for p in section.framed)],
        [p.bits.mean for p in section.framed],
    )
    axis.set_xlim(limits(xs))
    axis.set_ylim(limits(ys))
    axis.set_xlabel(
        f"forgetting: bits per byte of {_shown(', '.join(section.sources), 60)}, change in %\n(left"
        " is good)"
    )
    axis.set_ylabel(f"learning: bits per byte of {_shown(section.name)} (down is good)")
    _finish(axis, legend=True)
    return figure


def _training(section: Section) -> "Figure | None":
    sets = sets_in_curves(section)
    if not sets:
        return None
    figure, style = _new_figure(3.6 * len(sets), 3.4), looks(section.curves)
    for number, (name, role) in enumerate(sets.items(), start=1):
        axis = figure.add_subplot(1, len(sets), number)
        for course in courses(section, name):
            look = style[course.point.name]
            for steps, values in course.seeds if len(course.seeds) > 1 else ():
                axis.plot(
                    steps,
                    values,
                    color=look.colour,
                    linestyle=look.picture_dash,
                    linewidth=0.8,
                    alpha=0.3,
                )
            axis.plot(
                course.steps, course.means, color=look.colour, linestyle=look.picture_dash, marker=look.picture_marker,
                markersize=4, linewidth=1.4, label=_shown(numbers.row_name(course.point, section)),
            )  # fmt: skip
        axis.set_title(f"{_shown(name)} ({role})", fontsize=9)
        axis.set_xlabel("step")
        axis.set_ylabel("bits per byte (down is good)" if number == 1 else "")
        _finish(axis, legend=number == len(sets))
    return figure


def _layers(section: Section) -> "Figure | None":
    from matplotlib.ticker import MaxNLocator

    shown = [(point, layer_values(point, "gates_zero")) for point in section.rows]
    shown = [(point, values) for point, values in shown if values]
    if not shown:
        return None
    figure = _new_figure(4.0 * len(shown), 3.4)
    for number, (point, values) in enumerate(shown, start=1):
        axis = figure.add_subplot(1, len(shown), number)
        for index, (name, by_layer) in enumerate(values.items()):
            axis.plot(
                list(by_layer), [100 * v for v in by_layer.values()], color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)][1], marker=MARKERS[index % len(MARKERS)][1], markersize=4,
                label=_shown(name),
            )  # fmt: skip
        axis.set_title(_shown(numbers.row_name(point, section)), fontsize=9)
        axis.set_ylim(-3, 103)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("layer")
        axis.set_ylabel("gates that are exactly 0, % of tokens" if number == 1 else "")
        _finish(axis, legend=number == len(shown))
    return figure


def _heat(section: Section) -> "Figure | None":
    texts = heat_texts(section)
    if not texts:
        return None
    laid_out = [(text, _lines(text.tokens[:HEAT_TOKENS])) for text in texts]
    heights = [0.45 + len(lines) * _line_height(text) for text, lines in laid_out]
    figure = _new_figure(8.0, sum(heights) + 0.3)
    axes = figure.subplots(len(texts), 1, squeeze=False, height_ratios=heights)
    for (text, lines), axis in zip(laid_out, axes[:, 0], strict=True):
        _heat_text(axis, text, lines)
    return figure


def _lines(tokens: Sequence[HeatToken]) -> list[list[tuple[int, HeatToken]]]:
    """Tokens with the column where each begins, broken into lines."""
    lines: list[list[tuple[int, HeatToken]]] = [[]]
    column = 0
    for token in tokens:
        if column + len(token.text) > HEAT_COLUMNS and lines[-1]:
            lines.append([])
            column = 0
        lines[-1].append((column, token))
        column += len(token.text)
        if token.breaks:
            lines.append([])
            column = 0
    return [line for line in lines if line]


def _line_height(text: HeatText) -> float:
    """Inches: the letters, and a square for each layer."""
    return 0.22 + 0.055 * len(text.layers)


def _heat_text(
    axis: "Axes", text: HeatText, lines: Sequence[Sequence[tuple[int, HeatToken]]]
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    letters, square = 0.22 / _line_height(text), 0.055 / _line_height(text)
    patches, faces, edges = [], [], []
    for row, line in enumerate(lines):
        for column, token in line:
            axis.text(
                column,
                row + 0.75 * letters,
                token.text[:HEAT_COLUMNS],
                family="monospace",
                fontsize=9.2,
                va="baseline",
            )
            for index, level in enumerate(token.levels):
                width = max(0.5, len(token.text) - 0.25)
                patches.append(
                    Rectangle((column, row + letters + index * square), width, 0.75 * square)
                )
                faces.append((0.0, 0.447, 0.698, level / STEPS))
                edges.append((0.66, 0.66, 0.63, 1.0 if level == 0 else 0.0))
    cells = PatchCollection(patches, facecolors=faces, edgecolors=edges, linewidths=0.4)
    cells.set_clip_on(False)  # the name of its clip path would come from an address in memory
    axis.add_collection(cells)
    axis.set_xlim(0, HEAT_COLUMNS)
    axis.set_ylim(max(1, len(lines)), 0)
    axis.set_axis_off()
    title = f"{_shown(text.owner)} on {_shown(text.name)} ({text.kind})"
    axis.set_title(
        f"{title}: {100 * text.shut:.0f} % of gates exactly 0 (hollow)", fontsize=8, loc="left"
    )


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
    clean = "".join(c if c.isprintable() else "�" for c in text)
    short = clean if len(clean) <= length else f"{clean[: length - 1]}…"
    return (
        f" {short}" if short.startswith("_") else short
    )  # matplotlib's legends leave out what begins with "_"
