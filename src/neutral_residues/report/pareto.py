"""Comparisons: the Pareto front, forgetting at equal learning, and points that are better on both
sides.

All comparisons are of means over seeds. Less forgetting and fewer target bits per byte are better.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from neutral_residues.report.aggregate import SHARE, Curve, Point, Section

NEUTRAL = "neutral"
SAME_BUDGET = 0.02
"""Budgets that differ by less than this share of each other are the same."""
LEAST_OF_RATIO = 0.05
"""Forgetting in % below which no ratio is given: it divides by noise, or by what became easier."""


@dataclass(frozen=True)
class EqualLearning:
    """Forgetting of one curve where it has learnt as much as `Comparison.reference`."""

    name: str
    forgetting: float | None  # in %, interpolated; None if the curve does not learn as much
    times: float | None  # ratio to the reference's; None if one of both is below LEAST_OF_RATIO
    lowest_bits: float  # the fewest target bits per byte that the curve reaches
    num_points: int  # with one point the straight line from the backbone overstates forgetting


@dataclass(frozen=True)
class Comparison:
    """The point of neutral residues compared with everything else in a section."""

    reference: Point
    others: tuple[EqualLearning, ...]
    """Curves of other labels, least forgetting first; those that do not learn as much last."""
    better_on_both_sides: tuple[Point, ...]
    """Points with less forgetting and more learning, of those counted in `num_same_budget`."""
    num_same_budget: int
    """Number of other points that have the same budget or add no weights."""


def pareto_front(
    points: Iterable[Point],
    forgetting: Callable[[Point], float] = lambda point: point.forgetting.mean,
) -> list[Point]:
    """The points that no other dominates (see `_dominates`), by forgetting."""
    places = {point: (forgetting(point), point.bits.mean) for point in points}
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
    others = sorted((_at_equal_learning(c, section, reference) for c in curves), key=_least_first)
    same_budget = [p for p in section.points if p is not reference and _same_budget(p, reference)]
    x, y = _xy(reference)
    better = [p for p in same_budget if p.forgetting.mean < x and p.bits.mean < y]
    return Comparison(reference, tuple(others), tuple(better), len(same_budget))


def forgetting_at(
    bits: float, curve: Sequence[tuple[float, float]], *, backbone_bits: float
) -> float | None:
    """Forgetting where a curve reaches `bits` (of the target, per byte), linear between its points
    (forgetting in %, bits); None if it does not get there.

    The curve starts at the backbone, which has forgotten nothing. Points that another of the same
    curve dominates, such as too large a learning rate, are left out: this favours the curve.
    """
    kept = [p for p in curve if not any(_dominates(other, p) for other in curve)]
    learnt = [p for p in kept if p[1] < backbone_bits]
    path = sorted([(0.0, backbone_bits), *learnt], key=lambda p: -p[1])
    for (x0, y0), (x1, y1) in itertools.pairwise(path):
        if y1 <= bits <= y0:
            return x0 + (x1 - x0) * (y0 - bits) / (y0 - y1) if y0 > y1 else min(x0, x1)
    return None


def _at_equal_learning(curve: Curve, section: Section, reference: Point) -> EqualLearning:
    measured = [_xy(point) for point in (*curve.points, *_whole_share(curve, section))]
    backbone = reference.backbone_bits
    forgetting = forgetting_at(reference.bits.mean, measured, backbone_bits=backbone)
    least = reference.forgetting.mean
    times = None
    if forgetting is not None and min(forgetting, least) >= LEAST_OF_RATIO:
        times = forgetting / least
    return EqualLearning(curve.name, forgetting, times, min(y for _, y in measured), len(measured))


def _whole_share(curve: Curve, section: Section) -> list[Point]:
    """The end of a curve of shares, at share 1: the runs that it scales."""
    if curve.points[0].axis != SHARE:
        return []
    scaled = {run.record.config["scaling"]["trained"] for run in curve.points[0].runs}
    outputs = [(p, {run.record.config.get("output") for run in p.runs}) for p in section.points]
    return [p for p, theirs in outputs if scaled & theirs]


def _least_first(other: EqualLearning) -> tuple[bool, float]:
    if other.forgetting is None:
        return True, other.lowest_bits
    return False, other.forgetting


def _xy(point: Point) -> tuple[float, float]:
    return point.forgetting.mean, point.bits.mean


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
