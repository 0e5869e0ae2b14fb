"""Comparisons: the Pareto front, what is lost at equal learning, and points that are better on both
sides.

All comparisons are of means over seeds. Less that is lost on source text (`Lost`) and fewer target
bits per byte are better.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from neutral_residues.report.aggregate import SHARE, Curve, Point, Section, Spread

NEUTRAL = "neutral"
SAME_BUDGET = 0.02
"""Budgets that differ by less than this share of each other are the same."""
EASIER_PERCENT = -0.5
"""Forgetting below this is source text that became easier, not noise."""


@dataclass(frozen=True)
class Lost:
    """How a section measures what a point lost on source text."""

    name: str
    unit: str
    of: Callable[[Point], Spread]
    least_of_ratio: float  # below it no ratio is given: it divides by noise, or what became easier


def _kl(point: Point) -> Spread:
    kl = point.kl("source")
    assert kl is not None, "lost_in chooses KL only where every point has it"
    return kl


FORGETTING = Lost("forgetting", "%", lambda point: point.forgetting, 0.05)
KL = Lost("KL from the backbone", "nats per token", _kl, 0.01)


@dataclass(frozen=True)
class EqualLearning:
    """What one curve has lost where it has learnt as much as `Comparison.reference`."""

    name: str
    lost: float | None  # interpolated; None if the curve does not learn as much
    times: float | None  # ratio to the reference's; None if one is below `Lost.least_of_ratio`
    lowest_bits: float  # the fewest target bits per byte that the curve reaches
    num_points: int  # with one point the straight line from the backbone overstates what is lost


@dataclass(frozen=True)
class Comparison:
    """The point of neutral residues compared with everything else in a section."""

    lost: Lost
    reference: Point
    others: tuple[EqualLearning, ...]
    """Curves of other labels, those that lost least first; those that do not learn as much last."""
    better_on_both_sides: tuple[Point, ...]
    """Points that lost less and learnt more, of those counted in `num_same_budget`."""
    num_same_budget: int
    """Number of other points that have the same budget or add no weights."""


def became_easier(points: Iterable[Point]) -> bool:
    """Whether training made source text easier, as it does for a backbone that was tuned for chat:
    bits per byte then hide what was lost."""
    return any(point.forgetting.mean < EASIER_PERCENT for point in points)


def lost_in(section: Section) -> Lost:
    """Forgetting; where source text became easier and every point has it, KL instead."""
    has_kl = all(point.kl("source") is not None for point in section.points)
    return KL if has_kl and became_easier(section.points) else FORGETTING


def pareto_front(points: Iterable[Point], lost: Callable[[Point], Spread]) -> list[Point]:
    """The points that no other dominates (see `_dominates`), by what they lost."""
    places = {point: (lost(point).mean, point.bits.mean) for point in points}
    kept = [p for p in places if not any(_dominates(xy, places[p]) for xy in places.values())]
    return sorted(kept, key=places.__getitem__)


def compare_with_neutral(section: Section) -> Comparison | None:
    """Neutral residues against the rest; None where no point has the method "neutral". Of several
    such points the reference is the one labelled so, with the most seeds, that came first."""
    candidates = [point for point in section.rows if point.method == NEUTRAL]
    if not candidates:
        return None
    reference = max(candidates, key=lambda point: (point.label == NEUTRAL, point.bits.n))
    curves = [curve for curve in section.curves if curve.label != reference.label]
    lost = lost_in(section)
    found = [_at_equal_learning(curve, section, reference, lost) for curve in curves]
    same_budget = [p for p in section.points if p is not reference and _same_budget(p, reference)]
    x, y = lost.of(reference).mean, reference.bits.mean
    better = [p for p in same_budget if lost.of(p).mean < x and p.bits.mean < y]
    others = tuple(sorted(found, key=_least_first))
    return Comparison(lost, reference, others, tuple(better), len(same_budget))


def lost_at(
    bits: float, curve: Sequence[tuple[float, float]], *, backbone_bits: float
) -> float | None:
    """What is lost where a curve reaches `bits` (of the target, per byte), linear between its
    points (lost, bits); None if it does not get there.

    The curve starts at the backbone, which has lost nothing. Points that another of the same
    curve dominates, such as too large a learning rate, are left out: this favours the curve.
    """
    kept = [p for p in curve if not any(_dominates(other, p) for other in curve)]
    learnt = [p for p in kept if p[1] < backbone_bits]
    path = sorted([(0.0, backbone_bits), *learnt], key=lambda p: -p[1])
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        if y1 <= bits <= y0:
            return x0 + (x1 - x0) * (y0 - bits) / (y0 - y1) if y0 > y1 else min(x0, x1)
    return None


def _at_equal_learning(
    curve: Curve, section: Section, reference: Point, lost: Lost
) -> EqualLearning:
    points = (*curve.points, *_whole_share(curve, section))
    measured = [(lost.of(point).mean, point.bits.mean) for point in points]
    backbone = reference.backbone_bits
    theirs = lost_at(reference.bits.mean, measured, backbone_bits=backbone)
    own, times = lost.of(reference).mean, None
    if theirs is not None and min(theirs, own) >= lost.least_of_ratio:
        times = theirs / own
    return EqualLearning(curve.name, theirs, times, min(y for _, y in measured), len(measured))


def _whole_share(curve: Curve, section: Section) -> list[Point]:
    """The end of a curve of shares, at share 1: the runs that it scales."""
    if curve.points[0].axis != SHARE:
        return []
    scaled = {run.record.config["scaling"]["trained"] for run in curve.points[0].runs}
    outputs = [(p, {run.record.config.get("output") for run in p.runs}) for p in section.points]
    return [p for p, theirs in outputs if scaled & theirs]


def _least_first(other: EqualLearning) -> tuple[bool, float]:
    if other.lost is None:
        return True, other.lowest_bits
    return False, other.lost


def _dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether one is better on one side and at least as good on the other."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def _same_budget(one: Point, other: Point) -> bool:
    """Whether two have the same budget, given or used, or the first adds no weights."""
    pairs = [(p.settings.get("budget"), p.first.cost.new_share) for p in (one, other)]
    alike = [
        a is not None and b is not None and abs(a - b) <= SAME_BUDGET * max(a, b)
        for a, b in zip(*pairs, strict=True)
    ]
    return one.first.cost.new_weights == 0 or any(alike)
