"""Tests whether promises hold: splits the units of a source text many times, calibrates on one part
and checks the promise on the other.

    python benchmarks/calibration.py RUN --on pubmed=pubmed.jsonl.gz --group-by source \\
        --target fr=fr.jsonl.gz

In each split, half of the units are used for the calibration, as `neutral calibrate` does, and the
other half as later text. Printed are the share of splits in which the mean loss on later text is
at most what was promised, and medians over splits. The extension must have a single gate that reads
tokens, so that the text is read only once. With `--promise documents` (at most this share of
documents gets worse by over 1 %), documents are measured once, at the dial positions of all units;
a split uses the nearest of these that closes gates more.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from neutral_residues.calibration.dial import Position, positions, turned_up
from neutral_residues.calibration.losses import HowApplied, compared, worse_documents
from neutral_residues.calibration.statistics import num_tuning
from neutral_residues.calibration.units import Losses, Units
from neutral_residues.config.data import Corpus, Role
from neutral_residues.data.documents import iter_groups
from neutral_residues.data.tokenise import tokenise
from neutral_residues.evaluation.by_document import gate_logits
from neutral_residues.evaluation.evaluate_saved import windows_for
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.files import default_cache_folder
from neutral_residues.results.promise import PromiseKind
from neutral_residues.tuner.gates import gates

GATE = "gate"


@dataclass(frozen=True, eq=False)
class Text:
    """The gate logits of a text by unit, averaged as they are compared with the threshold."""

    by_unit: list[NDArray[np.float32]]  # of each unit, sorted

    @classmethod
    def of(cls, logits: NDArray[np.float32], units: Units, over: int) -> "Text":
        ends = units.stream.document_ends
        unit_N = np.repeat(units.unit_D, np.diff(ends, prepend=0))
        order = np.argsort(unit_N, kind="stable")
        cuts = np.cumsum(np.bincount(unit_N))[:-1]
        return cls([np.sort(part) for part in np.split(compared(logits, ends, over)[order], cuts)])

    def open_shares(self, threshold: float) -> NDArray[np.float64]:
        """(U,) share of the tokens of each unit on which the gate is open."""
        closed = [np.searchsorted(u, threshold, side="right") / len(u) for u in self.by_unit]
        return 1 - np.array(closed)

    def losses(self, threshold: float) -> Losses:
        """These shares as losses, without units for tuning."""
        return Losses(np.empty(0), self.open_shares(threshold))

    def open_share(self, threshold: float) -> float:
        """Share of all tokens on which the gate is open."""
        sizes = np.array([len(unit) for unit in self.by_unit])
        return float(np.average(self.open_shares(threshold), weights=sizes))


@dataclass(frozen=True, eq=False)
class WorseDocuments:
    """The share of each unit's documents that gets worse by over 1 %, at increasing thresholds."""

    thresholds: list[float]
    measured: list[Losses]

    @classmethod
    def of(cls, saved: Saved, text: Text, units: Units, over: int) -> "WorseDocuments":
        dial = positions({GATE: np.concatenate(text.by_unit)}, one_pass=False)
        (gate,) = gates(saved.model)
        untuned = replace(units, is_tuning_U=np.zeros(units.num_units, dtype=bool))
        how = HowApplied("cut", over)
        at = worse_documents(saved.model, untuned, windows_for(saved, None, None), how, 1.0)
        dial = [Position(it.share, {gate: it.values[GATE]}) for it in reversed(dial)]
        return cls([it.values[gate] for it in dial], [at(it) for it in dial])

    def losses(self, threshold: float) -> Losses:
        """Losses at this threshold, or the next larger one that was measured."""
        return self.measured[int(np.searchsorted(self.thresholds, threshold))]


@dataclass(frozen=True)
class Split:
    """Result of one split: the threshold, and the mean loss on later units."""

    threshold: float
    later: float


def one_split(
    text: Text,
    loss: Text | WorseDocuments,
    rng: np.random.Generator,
    at_most: float,
    confidence: float | None,
) -> Split | None:
    """Calibrate on half of the units, and measure the loss on the others; None if no dial position
    keeps the promise."""
    order = rng.permutation(len(text.by_unit))
    known, later = np.array_split(order, 2)
    tuning, testing = np.split(known, [num_tuning(len(known))])
    logits = np.concatenate([text.by_unit[unit] for unit in tuning])
    dial = positions({GATE: logits}, one_pass=loss is text)

    def losses_at(position: Position) -> Losses:
        found = loss.losses(position.values[GATE])
        return Losses(found.testing[tuning], found.testing[testing], found.are_binary)

    number = turned_up(dial, losses_at, at_most, confidence)
    if number == 0:
        return None
    threshold = dial[number - 1].values[GATE]
    return Split(threshold, float(loss.losses(threshold).testing[later].mean()))


def read(
    saved: Saved, text: str, role: Role, group_by: str | None
) -> tuple[Units, NDArray[np.float32]]:
    """Tokenise a text given as "name=file"; returns its units, and (N,) gate logits."""
    name, _, path = text.partition("=")
    corpus = Corpus(name=name, role=role, path=Path(path))
    stream, _ = tokenise(corpus, saved.tokenizer, cache_dir=default_cache_folder())
    groups = iter_groups(corpus, group_by) if group_by else None
    (logits,) = gate_logits(saved.model, stream, windows_for(saved, None, None)).values()
    return Units.of(stream, groups, group_by), logits


def report(
    saved: Saved,
    over: int,
    source: tuple[Units, NDArray[np.float32]],
    targets: Mapping[str, tuple[Units, NDArray[np.float32]]],
    options: argparse.Namespace,
) -> str:
    """The row of the table for gates averaged over `over` tokens."""
    units, logits = source
    text = Text.of(logits, units, over)
    loss = text if options.promise == "tokens" else WorseDocuments.of(saved, text, units, over)
    rng = np.random.default_rng(0)
    confidence = None if options.average else options.confidence
    found = [one_split(text, loss, rng, options.at_most, confidence) for _ in range(options.splits)]
    splits = [split for split in found if split is not None]
    if not splits:
        return f"{over} | no split keeps the promise"
    held = np.mean([split.later <= options.at_most for split in splits])
    threshold = float(np.median([split.threshold for split in splits]))
    later = np.array([split.later for split in splits])
    cells = [
        f"{len(splits)}",
        f"{100 * held:.1f} %",
        f"{100 * np.median(later):.2f} % (largest {100 * later.max():.2f} %)",
        f"{threshold:.3f}",
        f"{100 * (1 - text.open_share(0.0)):.1f} -> {100 * (1 - text.open_share(threshold)):.2f} %",
    ]
    for name, (target_units, target_logits) in targets.items():
        target = Text.of(target_logits, target_units, over)
        shares = [100 * target.open_share(value) for value in (0.0, threshold)]
        cells.append(f"{name} {shares[0]:.1f} -> {shares[1]:.1f} %")
    return f"{over} | " + " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--on", required=True, help="name=file")
    parser.add_argument("--target", action="append", default=[], help="name=file")
    parser.add_argument("--group-by")
    parser.add_argument("--promise", choices=get_args(PromiseKind), default="tokens")
    parser.add_argument("--at-most", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--average", action="store_true", help="on average, no confidence")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--over", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    options = parser.parse_args()
    saved = load_saved(options.run)
    source = read(saved, options.on, "source", options.group_by)
    targets = {text.partition("=")[0]: read(saved, text, "target", None) for text in options.target}
    print(
        "tokens of the mean | splits with a promise | held | loss on later units, median"
        " | threshold, median | all gates 0 on the text | open on targets"
    )
    for over in options.over:
        print(report(saved, over, source, targets, options), flush=True)


if __name__ == "__main__":
    main()
