"""What was measured along the way and inside the model: curves through training, gates and residues
by layer."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from neutral_residues.report.aggregate import Point, Section

PREFIX = "bits_per_byte/"


@dataclass(frozen=True)
class Course:
    """Bits per byte of one set through the training of one point.

    Attributes:
        seeds: one (steps, values) for each seed.
        steps: those that all seeds have.
        means: over the seeds, at these steps.
    """

    point: Point
    seeds: tuple[tuple[list[int], list[float]], ...]
    steps: list[int]
    means: list[float]


def sets_in_curves(section: Section) -> dict[str, str]:
    """Sets measured while training, with their roles: source sets first, by name."""
    roles: dict[str, str] = {}
    for point in section.rows:
        record = point.first
        sets = {**record.validation_sets, **record.sets}
        known = {name: measured.role for name, measured in sets.items()}
        keys = {
            key.removeprefix(PREFIX)
            for entry in record.curve
            for key in entry
            if key.startswith(PREFIX)
        }
        roles |= {name: known.get(name, "source") for name in keys}
    return dict(sorted(roles.items(), key=lambda item: (item[1] != "source", item[0])))


def courses(section: Section, set: str) -> list[Course]:
    """Each row's way through training, where it was measured."""
    found = [_course(point, f"{PREFIX}{set}") for point in section.rows]
    return [course for course in found if course is not None]


def layer_values(point: Point, name: str) -> dict[str, dict[int, float]]:
    """Evaluation set -> layer -> mean over seeds of "gates_zero" or "residue_rms"; source sets
    first."""
    values: dict[tuple[str, str], dict[int, list[float]]] = {}
    for run in point.runs:
        for set_name, found in run.record.sets.items():
            for one in found.layers:
                value = getattr(one, name)
                if value is not None:
                    layers = values.setdefault((found.role, set_name), {})
                    layers.setdefault(one.layer, []).append(value)
    return {
        set: {layer: statistics.fmean(found) for layer, found in sorted(layers.items())}
        for (_, set), layers in sorted(values.items())
    }


def _course(point: Point, key: str) -> Course | None:
    seeds = []
    for run in point.runs:
        measured = {
            int(entry["step"]): float(entry[key]) for entry in run.record.curve if key in entry
        }
        seeds.append(dict(sorted(measured.items())))
    steps = _common([list(seed) for seed in seeds])
    if not steps:
        return None
    means = [statistics.fmean(seed[step] for seed in seeds) for step in steps]
    return Course(point, tuple((list(seed), list(seed.values())) for seed in seeds), steps, means)


def _common(lists: Sequence[list[int]]) -> list[int]:
    return sorted(set.intersection(*(set(steps) for steps in lists)))
