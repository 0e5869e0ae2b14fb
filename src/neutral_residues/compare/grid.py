"""From a comparison file to its cells: one checked run each, and the order in which they can go.

A cell's name says what it is, and is its folder:

    RUN/LABEL/b0.2-lr0.005-p0.1-s0        budget, learning rate, source share, seed

Cells that differ in learning rate and seed only are a *group*; tuning chooses among its learning
rates. A method that takes its weights from another's run (`wise-ft`) gives *derived* cells, which
wait for that run.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neutral_residues.backbone import load_config
from neutral_residues.config.base import put, read_values
from neutral_residues.config.comparison import CELLS, CompareConfig, MethodEntry
from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.errors import UserError
from neutral_residues.methods.table import METHOD_SECTIONS, Method, find_method
from neutral_residues.results.record import Record
from neutral_residues.results.store import validation_bits

DERIVED_FROM = "finetune"
"""The method whose runs the derived ones average."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    name: str
    config: RunConfig
    group: str
    factor: float
    """Its learning rate as a multiple of the group's own."""
    made_of: str = ""
    """The group of the runs that a derived cell averages."""


@dataclass(frozen=True)
class Cells:
    """All cells of a comparison."""

    trained: tuple[Cell, ...]
    derived: tuple[Cell, ...]
    tune: bool
    first_seed: int

    def first_wave(self) -> list[Cell]:
        """All that train; when tuning, those of the first seed."""
        return [
            cell for cell in self.trained if not self.tune or cell.config.seed == self.first_seed
        ]

    def second_wave(self, best: Mapping[str, float]) -> list[Cell]:
        """When tuning, the other seeds at the best learning rate of each group (group ->
        factor)."""
        rest = [cell for cell in self.trained if self.tune and cell.config.seed != self.first_seed]
        return [cell for cell in rest if best.get(cell.group) == cell.factor]

    def third_wave(self, best: Mapping[str, float]) -> list[Cell]:
        """The derived ones; when tuning, those of the best learning rate of the runs they are made
        of."""
        return [
            cell for cell in self.derived if not self.tune or best.get(cell.made_of) == cell.factor
        ]

    def at_most(self) -> int:
        """How many there will be, whatever tuning finds."""
        if not self.tune:
            return len(self.trained) + len(self.derived)
        factors = len({cell.factor for cell in self.trained})
        rest = [cell for cell in self.trained if cell.config.seed != self.first_seed]
        return len(self.first_wave()) + (len(rest) + len(self.derived)) // factors


def expand(config: CompareConfig) -> Cells:
    """Every cell, each checked as a run of its own would be.

    Raises:
        UserError: for the first thing that is wrong: an unknown method, a setting without effect, a
            missing model.
    """
    cells: list[Cell] = []
    for path in config.runs:
        base = _base(path, config)
        for entry in config.methods:
            cells += _cells_of(config, path.stem, base, entry)
    _check_tuning(config, cells)
    derived = [cell for cell in cells if cell.made_of]
    trained = [cell for cell in cells if not cell.made_of]
    groups = {cell.group for cell in trained}
    for cell in derived:
        if cell.made_of not in groups:
            raise UserError(
                f"{cell.config.method} averages runs of {DERIVED_FROM}, and the comparison has none"
                " that fit",
                do=f"add {DERIVED_FROM} to methods",
            )
    return Cells(tuple(trained), tuple(derived), config.tune, config.seeds[0])


def _base(path: Path, config: CompareConfig) -> dict[str, Any]:
    values = read_values(path)
    for key, value in _flat(config.set):
        put(values, key, value)
    return values


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as dotted keys."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _cells_of(
    config: CompareConfig, run: str, base: dict[str, Any], entry: MethodEntry
) -> Iterator[Cell]:
    method = find_method(entry.method)
    own = dict(_flat(entry.set))
    budgets = (None,) if "budget" in own or not method.has_budget else config.budgets or (None,)
    shares = config.source_shares or (None,)
    curve_key, curve = (
        method.curve if method.curve and method.curve[0] not in own else (None, (None,))
    )
    common = {"method": entry.method, "label": entry.label, **own}
    for budget in budgets:
        for share in shares:
            for value in curve:
                axes = {"budget": budget, "data.source_share": share, curve_key: value}
                settings = {**{k: v for k, v in axes.items() if k and v is not None}, **common}
                yield from _group(config, run, _values(base, method, settings), method)


def _values(base: dict[str, Any], method: Method, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a run: the run file without the sections that the method has no use for, then
    the settings."""
    used = {key.split(".")[0] for key in method.uses}
    values = {
        key: dict(value) if isinstance(value, dict) else value
        for key, value in base.items()
        if key in used or key not in METHOD_SECTIONS
    }
    for key, value in settings.items():
        put(values, key, value)
    return values


def _group(
    config: CompareConfig, run: str, values: dict[str, Any], method: Method
) -> Iterator[Cell]:
    """The cells of one group: learning rates x seeds."""
    first = method.resolve(make_run({**values, "output": "unused"}))
    derived = not method.trains_any
    trained = find_method(DERIVED_FROM) if derived else method
    own_rate = trained.peak_learning_rate(
        first, hidden_size=_width(first.model, first.revision, first.trust_remote_code)
    )
    label = (first.label or method.name).replace(":", ".")
    sizes, share = _sizes(first, method), f"p{first.data.source_share:g}"
    group = "/".join([run, label, *sizes, share])
    made_of = f"{run}/{DERIVED_FROM}/{share}" if derived else ""
    for factor in config.learning_rate_factors:
        rate = float(f"{own_rate * factor:.4g}")
        for seed in config.seeds:
            ending = f"lr{rate:g}-{share}-s{seed}"
            name = f"{run}/{label}/{'-'.join([*sizes, ending])}"
            cell = _with(values, output=config.output / CELLS / name, seed=seed, learning_rate=rate)
            if made_of:
                put(
                    cell,
                    "averaging.finetuned",
                    str(config.output / CELLS / run / DERIVED_FROM / ending),
                )
            yield Cell(name, method.resolve(make_run(cell)), group, factor, made_of)


def _sizes(config: RunConfig, method: Method) -> list[str]:
    """The parts of a cell's name that say how large it is, or where on its curve."""
    sizes = [f"b{config.budget:g}"] if method.has_budget else []
    if method.curve:
        section, name = method.curve[0].split(".")
        sizes.append(f"{name}{getattr(getattr(config, section), name):g}")
    return sizes


def _with(
    values: dict[str, Any], *, output: Path, seed: int, learning_rate: float
) -> dict[str, Any]:
    copied = {
        key: dict(value) if isinstance(value, dict) else value for key, value in values.items()
    }
    put(copied, "training.learning_rate", learning_rate)
    return {**copied, "output": str(output), "seed": seed}


@functools.lru_cache(maxsize=16)
def _width(model: str, revision: str | None, trust_remote_code: bool) -> int:
    """Asked for every group, and a model on the Hub answers over the network."""
    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
    return int(config.get_text_config().hidden_size)


def _check_tuning(config: CompareConfig, cells: Sequence[Cell]) -> None:
    if not config.tune:
        return
    if len(config.learning_rate_factors) == 1:
        raise UserError(
            "tune has nothing to choose from",
            do="give learning_rate_factors, for example [0.5, 1, 2]",
        )
    for cell in cells:
        if not any(corpus.role == "target" for corpus in cell.config.data.validate_on):
            run = cell.name.split("/")[0]
            raise UserError(
                f"tune chooses by data.validate_on, and run file {run} has no target corpus there",
                do="add one; the evaluation sets are never chosen by",
            )


def best_factors(records: Mapping[str, Record], cells: Sequence[Cell]) -> dict[str, float]:
    """Group -> the factor whose cell (by name in `records`) has the fewest bits per byte on
    validation text."""
    best: dict[str, tuple[float, float]] = {}
    for cell in cells:
        if cell.name in records:
            bits = validation_bits(records[cell.name])
            assert bits is not None  # tuning was refused without text to validate on
            found = (bits, cell.factor)
            best[cell.group] = min(best.get(cell.group, found), found)
    return {group: factor for group, (_, factor) in best.items()}
