"""Records -> typed numbers: points, curves and sections. Layout and comparisons are elsewhere.

    point      records that differ only in the seed: mean, deviation and number of seeds
    curve      points of one label that differ only in the learning rate (or share of scaling)
    section    curves measured on the same target sets; several languages are several sections

Two numbers place a point, both lower where better:

    forgetting    rise in bits per byte in % of the backbone's, mean over the source sets
    learning      bits per byte on the target (mean over the target sets, where several)

Where a curve has several learning rates, the one with the lowest bits per byte at the end of
training on the target sets for validation is *chosen*, among those with the most seeds. The
evaluation sets are never used for choosing: without validation sets nothing is chosen, and every
point is shown.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

from neutral_residues.config.data import Role
from neutral_residues.errors import UserError
from neutral_residues.report.comparable import check_alike, point_settings
from neutral_residues.report.load import Found
from neutral_residues.results.record import Record
from neutral_residues.results.set_result import WRONG, SetResult, learning_share, wrong_share

LEARNING_RATE, SHARE = "training.learning_rate", "scaling.share"
WITH_A_COLUMN = frozenset({LEARNING_RATE, SHARE, "label"})
"""Settings that are not part of a variant's name, since every table has a column for them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """A number measured with one or more seeds."""

    mean: float
    deviation: float | None  # standard deviation (n - 1) over the seeds; None for one seed
    n: int  # seeds

    @classmethod
    def over(cls, values: Sequence[float]) -> "Spread":
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), deviation, len(values))


@dataclass(frozen=True, eq=False)
class Point:
    """Runs that differ only in their seed."""

    runs: tuple[Found, ...]  # by seed
    variant: str = ""  # settings without a column that differ from other points of its label
    learning_share: float | None = None  # share of full fine-tuning's learning, if that ran
    is_chosen: bool | None = None  # by validation; None if nothing was chosen

    @property
    def first(self) -> Record:
        """The record of the first seed."""
        return self.runs[0].record

    @property
    def label(self) -> str:
        return self.first.label

    @property
    def method(self) -> str:
        return self.first.method

    @property
    def name(self) -> str:
        """Label and variant: the name of its curve in a legend."""
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def full_name(self) -> str:
        """The name with the learning rate or share that distinguishes it from other points of its
        curve."""
        if self.share is not None:
            return f"{self.name} at share {self.share:g}"
        rate = self.learning_rate
        return self.name if rate is None else f"{self.name} at learning rate {rate:.3g}"

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Flat configuration, "training.steps" -> 1000, without settings in which seeds may
        differ."""
        return point_settings(self.first)

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None: the method's default, or a method that is not trained."""
        return self.settings.get(LEARNING_RATE)

    @property
    def share(self) -> float | None:
        """Factor on the change of the weights of a finished run; None if nothing was scaled."""
        scaling = self.first.config.get("scaling") or {}
        return scaling.get("share") if scaling.get("trained") else None

    @property
    def axis(self) -> str:
        """The setting in which it differs from other points of its curve."""
        return LEARNING_RATE if self.share is None else SHARE

    @property
    def axis_value(self) -> float | None:
        return self.settings.get(self.axis)

    @cached_property
    def forgetting_by_set(self) -> Mapping[str, Spread]:
        """Source set -> rise in %."""
        return self._by_set("source", lambda result: result.rise_percent)

    @cached_property
    def forgetting(self) -> Spread:
        """Mean over the source sets, in %."""
        return self._mean("source", lambda result: result.rise_percent)

    @cached_property
    def bits_by_target(self) -> Mapping[str, Spread]:
        """Target set -> bits per byte."""
        return self._by_set("target", lambda result: result.extended_bits_per_byte)

    @cached_property
    def bits(self) -> Spread:
        """Mean over the target sets, in bits per byte."""
        return self._mean("target", lambda result: result.extended_bits_per_byte)

    @cached_property
    def backbone_bits(self) -> float:
        return self._mean("target", lambda result: result.backbone_bits_per_byte).mean

    @cached_property
    def learning_percent(self) -> Spread:
        """Change of `bits` in % of the backbone's; below 0 is learning."""
        return self._mean("target", lambda result: result.rise_percent)

    @cached_property
    def neutral_percent(self) -> Spread | None:
        """Share of source tokens on which every gate is exactly 0, in %; None without block
        gates."""
        if any(result.neutral_share is None for result in sets_of(self.first, "source").values()):
            return None
        return self._mean("source", lambda result: 100 * (result.neutral_share or 0.0))

    @cached_property
    def same_answers_percent(self) -> Spread | None:
        """Share of chat answers that are word for word the backbone's, in %; None if not all seeds
        have any."""
        shares = [run.record.same_answers_share for run in self.runs]
        known = [100 * share for share in shares if share is not None]
        return Spread.over(known) if len(known) == len(shares) else None

    @cached_property
    def wrong_gates_percent(self) -> Mapping[Role, Spread]:
        """Role -> share of (token, layer) gates that are open on source text, or closed on target
        text, in %; empty without block gates."""
        found: dict[Role, Spread] = {}
        for role in WRONG:
            shares = [s.closed_gates_share for s in sets_of(self.first, role).values()]
            if None not in shares:
                found[role] = self._mean(
                    role, lambda s: 100 * wrong_share(s.closed_gates_share or 0.0, s.role)
                )
        return found

    @cached_property
    def validation_bits(self) -> Spread | None:
        """Bits per byte of the target sets for validation at the end of training; None without
        any."""
        found = [run.record.validation_bits for run in self.runs]
        known = [bits for bits in found if bits is not None]
        return Spread.over(known) if len(known) == len(found) else None

    def kl(self, role: Role) -> Spread | None:
        """KL divergence from the backbone in nats per token, mean over the sets of that role; None
        unless all seeds have it for all of them."""
        found = [list(sets_of(run.record, role).values()) for run in self.runs]
        if any(result.kl_nats_per_token is None for results in found for result in results):
            return None
        return self._mean(role, lambda result: result.kl_nats_per_token or 0.0)

    def _by_set(self, role: Role, value: Callable[[SetResult], float]) -> dict[str, Spread]:
        return {
            name: Spread.over([value(run.record.sets[name]) for run in self.runs])
            for name in sets_of(self.first, role)
        }

    def _mean(self, role: Role, value: Callable[[SetResult], float]) -> Spread:
        """Mean over the sets of each seed, then over the seeds."""
        sets = [sets_of(run.record, role).values() for run in self.runs]
        return Spread.over([statistics.fmean(map(value, results)) for results in sets])


@dataclass(frozen=True)
class Curve:
    """Points of one name that differ only in their `axis`, sorted by it."""

    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        return self.points[0].name

    @property
    def label(self) -> str:
        return self.points[0].label


@dataclass(frozen=True)
class Section:
    """All points measured on the same target sets, in the order of the records."""

    curves: tuple[Curve, ...]

    @property
    def sources(self) -> list[str]:
        return list(sets_of(self.points[0].first, "source"))

    @property
    def targets(self) -> list[str]:
        return list(sets_of(self.points[0].first, "target"))

    @property
    def name(self) -> str:
        return ", ".join(self.targets)

    @property
    def points(self) -> list[Point]:
        return [point for curve in self.curves for point in curve.points]

    @property
    def rows(self) -> list[Point]:
        """The points that represent their curve: the chosen one, or all if none was chosen."""
        return [point for point in self.points if point.is_chosen is not False]

    @property
    def cropped_points(self) -> list[Point]:
        """The points that a figure is cropped to: weight averages extend all the way to the
        backbone."""
        return [point for point in self.points if point.share is None] or self.points

    @property
    def backbone_bits(self) -> float:
        return self.points[0].backbone_bits

    def row_name(self, point: Point) -> str:
        """The name of a point, with its learning rate or share if another row has the same name."""
        namesakes = [row for row in self.rows if row.name == point.name]
        return point.name if namesakes == [point] else point.full_name


def sets_of(record: Record, role: Role) -> dict[str, SetResult]:
    """Evaluation sets of a role, by name."""
    return {name: found for name, found in sorted(record.sets.items()) if found.role == role}


def grouped(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Items grouped by key, groups in the order of their first item."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def sections(found: Sequence[Found]) -> list[Section]:
    """Points and curves of all records, by target. A UserError if a record has no source or target
    set, two records are one run, or records of a section were not measured alike."""
    for item in found:
        for role in ("source", "target"):
            if not sets_of(item.record, role):
                raise UserError(
                    f"record {item.origin} cannot be reported: it lacks a {role} set",
                    do=f"evaluate it on one (neutral evaluate --set {role}:name=file)",
                )
    by_target = grouped(found, lambda item: tuple(sets_of(item.record, "target")))
    return [_section(group) for group in by_target]


def _section(found: Sequence[Found]) -> Section:
    for item in found[1:]:
        check_alike(found[0], item)
    runs = grouped(found, lambda item: frozenset(point_settings(item.record).items()))
    points = _with_variants([_point(group) for group in runs])
    by_curve = grouped(points, lambda p: frozenset(p.settings.items() - {(p.axis, p.axis_value)}))
    curves = _with_own_names([_curve(group) for group in by_curve])
    finetuned = [point for point in Section(curves).rows if point.method == "finetune"]
    shared = ((replace(p, learning_share=_share(p, finetuned)) for p in c.points) for c in curves)
    return Section(tuple(Curve(tuple(points)) for points in shared))


def _point(runs: Sequence[Found]) -> Point:
    runs = sorted(runs, key=_seed)
    for one, other in itertools.pairwise(runs):
        if _seed(one) == _seed(other):
            raise UserError(
                f"{one.origin} and {other.origin} are the same run (label, settings and seed)",
                do="give one of the two, or give them labels",
            )
    return Point(tuple(runs))


def _seed(found: Found) -> int:
    seed = found.record.config.get("seed", found.record.provenance.seed)
    return seed if isinstance(seed, int) else 0


def _curve(points: Sequence[Point]) -> Curve:
    points = sorted(points, key=lambda p: -math.inf if p.axis_value is None else p.axis_value)
    most_seeds = max(point.bits.n for point in points)
    bits = {p: p.validation_bits.mean for p in points if p.validation_bits is not None}
    if points[0].axis == LEARNING_RATE and len(bits) == len(points) > 1:
        best = min((p for p in points if p.bits.n == most_seeds), key=bits.__getitem__)
        points = [replace(point, is_chosen=point is best) for point in points]
    return Curve(tuple(points))


def _with_variants(points: Sequence[Point]) -> list[Point]:
    """Each point with the settings without a column that differ within its label."""
    named = []
    for point in points:
        same_label = [other.settings for other in points if other.label == point.label]
        shown = WITH_A_COLUMN - {LEARNING_RATE} if point.share is not None else WITH_A_COLUMN
        keys = sorted({key for settings in same_label for key in settings} - shown)
        differing = [key for key in keys if len({s.get(key) for s in same_label}) > 1]
        texts = (_setting_text(key, point.settings.get(key, "unset")) for key in differing)
        named.append(replace(point, variant=", ".join(texts)))
    return named


def _setting_text(key: str, value: object) -> str:
    name, text = key.rpartition(".")[2].replace("_", " "), str(value)
    if text.startswith("["):
        return f"other {name}"
    return f"{name} {text}" if len(text) <= 24 else f"{name} …{text[-23:]}"


def _with_own_names(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """Number the curves of one name, such as those of two long lists of training text."""
    named = []
    for number, curve in enumerate(curves):
        same = 1 + sum(other.name == curve.name for other in curves[:number])
        suffix = f" #{same}" if same > 1 else ""
        points = (replace(point, variant=point.variant + suffix) for point in curve.points)
        named.append(Curve(tuple(points)))
    return tuple(named)


def _share(point: Point, finetuned: Sequence[Point]) -> float | None:
    """Learning as a share of full fine-tuning's, with the same steps and source share if there is
    such a run; None unless exactly one candidate is left."""

    def recipe(p: Point) -> list[Any]:
        return [p.settings.get(key) for key in ("training.steps", "data.source_share")]

    yardsticks = [p for p in finetuned if recipe(p) == recipe(point)] or finetuned
    if len(yardsticks) != 1:
        return None
    extended, best = point.bits.mean, yardsticks[0].bits.mean
    return learning_share(extended=extended, backbone=point.backbone_bits, finetuned=best)
