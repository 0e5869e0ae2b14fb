"""Expands a comparison file into its cells: validated runs, and the order in which they can run.

The name of a cell contains its settings, and is the name of its folder too:

    RUN/LABEL/b0.2-lr0.005-p0.1-s0        budget, learning rate, source share, seed

Cells that differ only in learning rate and seed are a *group*; tuning chooses the best learning
rate of each group. Methods that scale what the run of another method has learnt (`wise-ft`) have
*derived* cells, which wait for that run.
"""

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neutral_residues.backbone import load_config
from neutral_residues.config.base import flat, put, read_values
from neutral_residues.config.comparison import CELLS, CompareConfig, MethodEntry
from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.errors import UserError
from neutral_residues.methods.scaled import check_same_training
from neutral_residues.methods.table import METHOD_SECTIONS, Method, find_method
from neutral_residues.results.record import Record


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    config: RunConfig
    group: str
    factor: float  # its learning rate as a multiple of that of its group
    made_of: str = ""  # for a derived cell: the group of the runs that it scales


@dataclass(frozen=True)
class Cells:
    """All cells of a comparison, and how they are tuned."""

    trained: tuple[Cell, ...]
    derived: tuple[Cell, ...]
    tune: bool
    first_seed: int

    def first_wave(self) -> list[Cell]:
        """Cells that train; with tuning, only those of the first seed."""
        first = [cell for cell in self.trained if cell.config.seed == self.first_seed]
        return first if self.tune else list(self.trained)

    def second_wave(self, best: Mapping[str, float]) -> list[Cell]:
        """With tuning, the other seeds of each group at its best learning rate; else none. `best`:
        group -> factor."""
        rest = [cell for cell in self.trained if cell.config.seed != self.first_seed]
        return [cell for cell in rest if self.tune and best.get(cell.group) == cell.factor]

    def third_wave(self, best: Mapping[str, float]) -> list[Cell]:
        """Derived cells; with tuning, only those made from runs with the best learning rate."""
        return [c for c in self.derived if not self.tune or best.get(c.made_of) == c.factor]

    def at_most(self) -> int:
        """Number of cells that will run, whichever learning rates tuning chooses."""
        if not self.tune:
            return len(self.trained) + len(self.derived)
        first, factors = len(self.first_wave()), len({cell.factor for cell in self.trained})
        return first + (len(self.trained) - first + len(self.derived)) // factors


def expand(config: CompareConfig) -> Cells:
    """All cells of a comparison, each validated as a run. Raises a UserError for the first invalid
    setting: an unknown method, a setting without effect, a missing model, and so on."""
    cells: list[Cell] = []
    for path in config.runs:
        base = _with(read_values(path), flat(config.set))
        for entry in config.methods:
            cells += _cells_of(config, path.stem, base, entry)
    _check_tuning(config, cells)
    derived = [cell for cell in cells if cell.made_of]
    trained = [cell for cell in cells if not cell.made_of]
    by_folder = {str(cell.config.output): cell.config for cell in trained}
    for cell in derived:
        scaled = cell.config
        if (behind := by_folder.get(str(scaled.scaling.trained))) is None:
            made_from = find_method(scaled.method).made_from
            what = f"{scaled.method} scales runs of {made_from}, and none here fits"
            raise UserError(what, do=f"add {made_from} to methods, with the same settings")
        check_same_training(scaled, behind)
    return Cells(tuple(trained), tuple(derived), config.tune, config.seeds[0])


def _with(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the values of a run file, changed by settings with dotted keys."""
    changed = copy.deepcopy(dict(values))
    for key, value in settings.items():
        put(changed, key, value)
    return changed


def _cells_of(
    config: CompareConfig, run: str, base: dict[str, Any], entry: MethodEntry
) -> Iterator[Cell]:
    """The cells of one method on one run file, of which sections for other methods are ignored."""
    method = find_method(entry.method)
    used = {key.split(".")[0] for key in method.uses}
    kept = {key: value for key, value in base.items() if key in used or key not in METHOD_SECTIONS}
    own = {"method": entry.method, "label": entry.label} | flat(entry.set)
    axes = _axes(config, method)
    free = [key for key in axes if key not in own]
    for point in itertools.product(*(axes[key] for key in free)):
        settings = dict(zip(free, point, strict=True)) | own
        yield from _group(config, run, _with(kept, settings), method)


def _axes(config: CompareConfig, method: Method) -> dict[str, Sequence[float]]:
    """Dotted key -> values that are combined with all others: budgets and source shares of the
    comparison, if the method uses them, and the method's own curve. Settings without a list are
    those of the run file."""
    axes: dict[str, Sequence[float]] = {}
    if _trained(method).has_budget and config.budgets:
        axes["budget"] = config.budgets
    if config.source_shares:
        axes["data.source_share"] = config.source_shares
    return axes | dict([method.curve] if method.curve else [])


def _group(
    config: CompareConfig, run: str, values: dict[str, Any], method: Method
) -> Iterator[Cell]:
    """The cells of one group: all combinations of learning rates and seeds."""
    first = method.resolve(make_run({**values, "output": "unused"}))
    trained = _trained(method)
    hidden_size = _width(first.model, first.revision, first.trust_remote_code)
    own_rate = trained.peak_learning_rate(first, hidden_size=hidden_size)
    label = (first.label or method.name).replace(":", ".")
    size, share = _size(first, trained), f"p{first.data.source_share:g}"
    sizes = [*size, *_place_on_curve(first, method)]
    group = "/".join([run, label, *sizes, share])
    made_of = "/".join([run, method.made_from, *size, share]) if method.made_from else ""
    folder = config.output / CELLS
    for factor, seed in itertools.product(config.learning_rate_factors, config.seeds):
        rate = float(f"{own_rate * factor:.4g}")
        ending = f"lr{rate:g}-{share}-s{seed}"
        name = f"{run}/{label}/{'-'.join([*sizes, ending])}"
        settings = {"output": str(folder / name), "seed": seed, "training.learning_rate": rate}
        if method.made_from:
            of = "-".join([*size, ending])
            settings["scaling.trained"] = str(folder / run / method.made_from / of)
        cell = method.resolve(make_run(_with(values, settings)))
        yield Cell(name, cell, group, factor, made_of)


def _trained(method: Method) -> Method:
    """The method that is trained: `method`, or the one whose runs it scales."""
    return find_method(method.made_from) if method.made_from else method


def _size(config: RunConfig, trained: Method) -> list[str]:
    """The part of a cell's name with its budget, if the method has one."""
    return [f"b{config.budget:g}"] if trained.has_budget else []


def _place_on_curve(config: RunConfig, method: Method) -> list[str]:
    """The part of a cell's name with its point on the method's curve, if it has one."""
    if not method.curve:
        return []
    section, name = method.curve[0].split(".")
    return [f"{name}{getattr(getattr(config, section), name):g}"]


@functools.lru_cache(maxsize=16)
def _width(model: str, revision: str | None, trust_remote_code: bool) -> int:
    """Hidden size of a model; cached, because it is needed for every group, and a model on the Hub
    takes network requests."""
    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
    return int(config.get_text_config().hidden_size)


def _check_tuning(config: CompareConfig, cells: Sequence[Cell]) -> None:
    if not config.tune:
        return
    if len(config.learning_rate_factors) == 1:
        do = "give learning_rate_factors, for example [0.5, 1, 2]"
        raise UserError("tune has nothing to choose from", do=do)
    for cell in cells:
        if not any(corpus.role == "target" for corpus in cell.config.data.validate_on):
            run = f"run file {cell.name.split('/')[0]}"
            what = f"tune chooses by data.validate_on, and {run} has no target corpus there"
            raise UserError(what, do="add one; the evaluation sets are never chosen by")


def best_factors(records: Mapping[str, Record], cells: Sequence[Cell]) -> dict[str, float]:
    """Group -> learning-rate factor of the cell with the fewest bits per byte on validation
    text."""
    best: dict[str, tuple[float, float]] = {}
    for cell in cells:
        if cell.name in records:
            bits = records[cell.name].validation_bits
            assert bits is not None  # tuning was refused without text to validate on
            tried = (bits, cell.factor)
            best[cell.group] = min(tried, best.get(cell.group, tried))
    return {group: factor for group, (_, factor) in best.items()}
