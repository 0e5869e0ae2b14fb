"""Measurements during training, and by layer."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from neutral_residues.report.aggregate import Point, Section, sets_of
from neutral_residues.results.record import Record
from neutral_residues.results.set_result import LayerNumber, rise_percent

PREFIX = "bits_per_byte/"


@dataclass(frozen=True)
class TrainingCurve:
    """Bits per byte of one set during the training of one point."""

    point: Point
    seeds: tuple[dict[int, float], ...]  # step -> value, for each seed

    @property
    def steps(self) -> list[int]:
        """The steps that all seeds have."""
        return sorted(set.intersection(*map(set, self.seeds)))

    @property
    def means(self) -> list[float]:
        """Mean over the seeds at each of `steps`."""
        return [statistics.fmean(seed[step] for seed in self.seeds) for step in self.steps]


def sets_in_curves(section: Section) -> dict[str, str]:
    """Sets measured while training, with their roles: source sets first, by name."""
    roles = {
        name: known.role
        for point in section.rows
        for name, known in {**point.first.sets, **point.first.validation_sets}.items()
        if any(PREFIX + name in entry for entry in point.first.curve)
    }
    return dict(sorted(roles.items(), key=lambda item: (item[1] != "source", item[0])))


def training_curves(section: Section, set_name: str) -> list[TrainingCurve]:
    """The training curve of each row that has measurements of the set."""
    key = PREFIX + set_name
    found = []
    for point in section.rows:
        measured = ([entry for entry in run.record.curve if key in entry] for run in point.runs)
        seeds = (sorted((int(entry["step"]), entry[key]) for entry in seed) for seed in measured)
        found.append(TrainingCurve(point, tuple(map(dict, seeds))))
    return [curve for curve in found if curve.steps]


def layer_values(
    point: Point, name: Literal["gates_zero", "residue_rms"]
) -> dict[str, dict[LayerNumber, float]]:
    """Evaluation set -> layer -> mean over seeds; source sets first, sets without values left
    out."""
    found = {}
    for set_name in (*sets_of(point.first, "source"), *sets_of(point.first, "target")):
        by_layer: dict[LayerNumber, list[float]] = {}
        for layer in (layer for run in point.runs for layer in run.record.sets[set_name].layers):
            if (value := getattr(layer, name)) is not None:
                by_layer.setdefault(layer.layer, []).append(value)
        if by_layer:
            found[set_name] = {n: statistics.fmean(values) for n, values in by_layer.items()}
    return found


def rises(record: Record, names: Sequence[str]) -> list[list[float]]:
    """Rise in % of each set over training: 0 for the backbone, then at each step where all sets
    were measured, then at the end. Measurements during training are on a part of the text and
    compared with the backbone on that part (step 0); without step 0 they are left out."""
    keys = [PREFIX + name for name in names]
    measured = [entry for entry in record.curve if all(key in entry for key in keys)]
    if not measured or measured[0]["step"] != 0:
        measured = []
    rises = []
    for name, key in zip(names, keys, strict=True):
        way = [rise_percent(measured[0][key], entry[key]) for entry in measured[1:-1]]
        rises.append([0.0, *way, record.sets[name].rise_percent])
    return rises
