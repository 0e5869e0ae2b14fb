"""Records -> typed numbers: points, curves and sections. Nothing about looks, nothing about who
wins.

    point      records that agree in everything but the seed: mean, standard deviation and number of seeds
    curve      points of one label that differ only in the learning rate (or in the share of weight averaging)
    section    curves that were measured on the same target sets; several languages are several sections

Two numbers place a point:

    forgetting    mean over the source sets of the change of bits per byte, in % of the backbone's; lower is better
    learning      bits per byte on the target (mean over the target sets, where there are several); lower is better

Where a curve has several learning rates, the one with the lowest bits per byte at the end of
training on target sets with `use: validate` is *chosen*, among those with the most seeds. The
evaluation sets never choose: without sets to validate on nothing is chosen, and every point stands
for itself.
"""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.report.comparable import check_alike, point_settings
from neutral_residues.report.load import Found
from neutral_residues.results.record import Record
from neutral_residues.results.set_result import SetResult, learning_share
from neutral_residues.results.store import validation_bits

LEARNING_RATE, SHARE = "training.learning_rate", "averaging.share"
UNNAMED = frozenset({LEARNING_RATE, SHARE, "label"})
"""Settings that no variant names, since every table shows them."""
AVERAGING = "wise-ft"
"""The method that has a share of weight averaging; others ignore that setting."""


@dataclass(frozen=True)
class Spread:
    """A number measured with one or more seeds.

    Attributes:
        mean: over the seeds.
        deviation: standard deviation (n - 1) over the seeds; None for one seed.
        n: number of seeds.
    """

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True)
class Point:
    """Runs that differ only in their seed.

    Attributes:
        label: how tables call it.
        variant: settings in which it differs from other points of its label and that have no
            column; may be empty.
        method: name in the table of methods.
        settings: flat configuration, "training.steps" -> 1000; without what seeds may differ in.
        runs: the records, by seed.
        forgetting_by_set: source set -> change in %.
        forgetting: mean over the source sets, in %.
        target_by_set: target set -> bits per byte.
        bits: mean over the target sets, in bits per byte.
        backbone_bits: the backbone's, on the same.
        learning_percent: change of `bits` in % of the backbone's; below 0 is learning.
        validation_bits: bits per byte of the target sets to validate on, at the end; None without
            any.
        learning_share: share of full fine-tuning's drop, 1 being all; None where that was not run.
        is_chosen: whether validation took this learning rate; None where nothing could choose.
    """

    label: str
    method: str
    settings: Mapping[str, Any]
    runs: tuple[Found, ...]
    forgetting_by_set: Mapping[str, Spread]
    forgetting: Spread
    target_by_set: Mapping[str, Spread]
    bits: Spread
    backbone_bits: float
    learning_percent: Spread
    validation_bits: Spread | None
    variant: str = ""
    learning_share: float | None = None
    is_chosen: bool | None = None

    @property
    def name(self) -> str:
        """Label and variant: what a legend calls its curve."""
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None means the method's own recipe, or a method that is not
        trained."""
        return self.settings.get(LEARNING_RATE)

    @property
    def share(self) -> float | None:
        """Share of the fine-tuned model in a weight average; None for other methods."""
        return self.settings.get(SHARE) if self.method == AVERAGING else None

    @property
    def first(self) -> Record:
        """The record of the first seed."""
        return self.runs[0].record

    @property
    def new_share(self) -> float | None:
        """New weights as a share of the backbone's."""
        cost = self.first.cost
        return (
            cost.new_weights / cost.backbone_weights
            if cost.backbone_weights and cost.new_weights is not None
            else None
        )


@dataclass(frozen=True)
class Curve:
    """Points of one label that differ only in `axis`, in its order.

    Attributes:
        axis: LEARNING_RATE or SHARE.
    """

    name: str
    label: str
    axis: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Section:
    """Everything that was measured on the same target sets.

    Attributes:
        name: the target sets.
        sources: names of the source sets.
        targets: names of the target sets.
        curves: in the order of the records.
    """

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    curves: tuple[Curve, ...] = field(default=())

    @property
    def points(self) -> list[Point]:
        return [point for curve in self.curves for point in curve.points]

    @property
    def rows(self) -> list[Point]:
        """The points that stand for their curve: the chosen one, or all where nothing could
        choose."""
        return [point for point in self.points if point.is_chosen is not False]

    @property
    def framed(self) -> list[Point]:
        """The points that a picture is cropped to: weight averages reach all the way back to the
        backbone."""
        return [point for point in self.points if point.share is None] or self.points

    @property
    def backbone_bits(self) -> float:
        return self.points[0].backbone_bits


def sections(found: Sequence[Found]) -> list[Section]:
    """Points and curves of all records, by target.

    Raises:
        UserError: if a record lacks a side, two records are one run, or records of a section were
            not measured alike.
    """
    by_targets: dict[tuple[str, ...], list[Found]] = {}
    for item in found:
        by_targets.setdefault(tuple(_results(item, "target")), []).append(item)
    return [_section(targets, items) for targets, items in by_targets.items()]


def _section(targets: tuple[str, ...], found: Sequence[Found]) -> Section:
    for item in found[1:]:
        check_alike(found[0], item)
    groups: dict[str, list[Found]] = {}
    for item in found:
        groups.setdefault(json.dumps(point_settings(item.record), sort_keys=True), []).append(item)
    points = _with_variants([_point(group) for group in groups.values()])
    families: dict[str, list[Point]] = {}
    for point in points:
        axis = _axis(point)
        rest = {key: value for key, value in point.settings.items() if key != axis}
        families.setdefault(json.dumps(rest, sort_keys=True), []).append(point)
    curves = _with_own_names([_curve(family) for family in families.values()])
    section = Section(", ".join(targets), tuple(_results(found[0], "source")), targets, curves)
    return _with_learning_share(section)


def _results(found: Found, role: str) -> dict[str, SetResult]:
    sets = found.record.sets
    names = sorted(name for name in sets if sets[name].role == role)
    if not names:
        do = f"evaluate it on one (neutral evaluate --set {role}:name=file)"
        raise UserError(f"record {found.origin} cannot be reported: it lacks a {role} set", do=do)
    return {name: sets[name] for name in names}


def _point(runs: Sequence[Found]) -> Point:
    runs = sorted(runs, key=lambda run: _seed(run.record))
    for one, other in itertools.pairwise(runs):
        if _seed(one.record) == _seed(other.record):
            what = f"{one.origin} and {other.origin} are the same run (label, settings and seed)"
            raise UserError(what, do="give one of the two, or give them labels")
    record = runs[0].record
    sources, targets = ([_results(run, role) for run in runs] for role in ("source", "target"))
    before = statistics.fmean(r.backbone_bits_per_byte for r in targets[0].values())
    bits = Spread.of(
        [statistics.fmean(r.extended_bits_per_byte for r in run.values()) for run in targets]
    )
    validation = [validation_bits(run.record) for run in runs]
    known = [value for value in validation if value is not None]
    return Point(
        label=record.label,
        method=record.method,
        settings=point_settings(record),
        runs=tuple(runs),
        forgetting_by_set={
            name: Spread.of([run[name].rise_percent for run in sources]) for name in sources[0]
        },
        forgetting=Spread.of(
            [statistics.fmean(r.rise_percent for r in run.values()) for run in sources]
        ),
        target_by_set={
            name: Spread.of([run[name].extended_bits_per_byte for run in targets])
            for name in targets[0]
        },
        bits=bits,
        backbone_bits=before,
        learning_percent=Spread.of(
            [statistics.fmean(r.rise_percent for r in run.values()) for run in targets]
        ),
        validation_bits=Spread.of(known) if len(known) == len(validation) else None,
    )


def _seed(record: Record) -> int:
    seed = record.config.get("seed", record.provenance.seed)
    return seed if isinstance(seed, int) else 0


def _axis(point: Point) -> str:
    return SHARE if point.share is not None else LEARNING_RATE


def _curve(points: Sequence[Point]) -> Curve:
    axis = _axis(points[0])
    points = sorted(points, key=lambda point: point.settings.get(axis, -math.inf))
    if axis == LEARNING_RATE and len(points) > 1:
        points = _choose(points)
    return Curve(points[0].name, points[0].label, axis, tuple(points))


def _choose(points: Sequence[Point]) -> list[Point]:
    if any(point.validation_bits is None for point in points):
        return list(points)
    seeds = max(point.bits.n for point in points)
    best = min(
        (point for point in points if point.bits.n == seeds),
        key=lambda point: math.inf if point.validation_bits is None else point.validation_bits.mean,
    )
    return [replace(point, is_chosen=point is best) for point in points]


def _with_variants(points: Sequence[Point]) -> list[Point]:
    """Give each point the settings in which it differs from others of its label, as far as no
    column shows them."""
    named = []
    for point in points:
        others = [other.settings for other in points if other.label == point.label]
        unnamed = UNNAMED - {LEARNING_RATE} if point.share is not None else UNNAMED
        keys = sorted({key for settings in others for key in settings} - unnamed)
        differing = [
            key for key in keys if len({json.dumps(settings.get(key)) for settings in others}) > 1
        ]
        named.append(
            replace(
                point, variant=", ".join(_setting_text(key, point.settings) for key in differing)
            )
        )
    return named


def _setting_text(key: str, settings: Mapping[str, Any]) -> str:
    name, value = key.rpartition(".")[2], str(settings.get(key, "unset"))
    if value.startswith("["):
        return f"other {name}"
    return f"{name} {value}" if len(value) <= 24 else f"{name} …{value[-23:]}"


def _with_own_names(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """Number the curves whose names would be alike, such as those of two long lists of training
    text."""
    named: list[Curve] = []
    for number, curve in enumerate(curves):
        same = sum(other.name == curve.name for other in curves[:number])
        points = (
            tuple(replace(p, variant=f"{p.variant} #{same + 1}") for p in curve.points)
            if same
            else curve.points
        )
        named.append(replace(curve, name=points[0].name, points=points))
    return tuple(named)


def _with_learning_share(section: Section) -> Section:
    finetuned = [point for point in section.rows if point.method == "finetune"]
    return replace(
        section,
        curves=tuple(
            replace(
                curve,
                points=tuple(replace(p, learning_share=_share(p, finetuned)) for p in curve.points),
            )
            for curve in section.curves
        ),
    )


def _share(point: Point, finetuned: Sequence[Point]) -> float | None:
    """Learning as a share of full fine-tuning's, of the same steps and source share where there is
    such a run.

    Several that would serve, with nothing to choose by, are no yardstick.
    """

    def recipe(p: Point) -> tuple[Any, Any]:
        return p.settings.get("training.steps"), p.settings.get("data.source_share")

    yardsticks = [p for p in finetuned if recipe(p) == recipe(point)] or list(finetuned)
    if len(yardsticks) != 1:
        return None
    return learning_share(
        backbone=point.backbone_bits, extended=point.bits.mean, finetuned=yardsticks[0].bits.mean
    )
