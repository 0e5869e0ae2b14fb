"""Pictures of records, drawn with matplotlib. No torch.

Colours are Okabe and Ito's, which colour-blind eyes tell apart; every method has its own marker
too.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from neutral_residues.files import disk_errors
from neutral_residues.results.record import Record
from neutral_residues.results.set_result import rise_percent

COLOURS = {"neutral": "#0072B2", "adapter": "#E69F00", "lora": "#009E73", "finetune": "#D55E00"}
MARKERS = {"neutral": "o", "adapter": "s", "lora": "^", "finetune": "D"}
OTHER_COLOUR, OTHER_MARKER = "#555555", "v"


def draw_trade_off(
    records: Mapping[str, Record],
    path: Path,
    *,
    source: str | Sequence[str],
    target: str,
    title: str,
) -> None:
    """Draw forgetting against learning, one path through training per record, as PNG or SVG by the
    ending of `path`.

    Left is good (nothing forgotten), down is good (learnt). Each path starts at the backbone; its
    last point is the end.

    Args:
        records: label -> record of a training run whose curve has bits per byte.
        source: names of held-out source sets; one panel each.
        target: name of the held-out target set.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sources = [source] if isinstance(source, str) else list(source)
    figure, axes = plt.subplots(
        1,
        len(sources),
        figsize=(4.6 * len(sources), 4.0),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, name in zip(axes[0], sources, strict=True):
        for label, record in records.items():
            xs, ys = _path(record, source=name, target=target)
            colour = COLOURS.get(record.method, OTHER_COLOUR)
            axis.plot(xs, ys, color=colour, linewidth=1.5, alpha=0.6)
            axis.plot(
                xs[-1],
                ys[-1],
                MARKERS.get(record.method, OTHER_MARKER),
                color=colour,
                markersize=9,
                label=label,
            )
        axis.axvline(0, color="#999999", linewidth=0.8)
        axis.set_xlabel(f"forgetting: bits per byte of {name}, change in %")
        axis.grid(visible=True, alpha=0.25)
    axes[0][0].set_ylabel(f"learning: bits per byte of {target}, change in %")
    axes[0][0].legend(frameon=False)
    figure.suptitle(title)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Fixed metadata: the same record gives the same file.
        metadata: dict[str, str | None] = (
            {"Software": None} if path.suffix == ".png" else {"Date": None}
        )
        figure.savefig(path, dpi=150, metadata=metadata)
    plt.close(figure)


def _path(record: Record, *, source: str, target: str) -> tuple[list[float], list[float]]:
    """Change in per cent of source and target bits per byte: at the backbone, at each measurement,
    at the end.

    Measurements on the way are on a part of the text, so they are held against the backbone on that
    part (step 0).
    """
    keys = (f"bits_per_byte/{source}", f"bits_per_byte/{target}")
    measured = [
        tuple(point[key] for key in keys)
        for point in record.curve
        if all(key in point for key in keys)
    ]
    way = [tuple(map(rise_percent, measured[0], point)) for point in measured[1:-1]]
    end = tuple(record.sets[name].rise_percent for name in (source, target))
    points = [(0.0, 0.0), *way, end]
    return [point[0] for point in points], [point[1] for point in points]
