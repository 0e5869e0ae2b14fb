"""The comparison file: what `neutral compare` combines, checked before anything starts.

Its output folder:

    compare.yaml    the resolved comparison file
    plan/           a run file for each cell: `neutral extend` on it repeats that cell only
    cells/          the output folder of each cell
    logs/           what each cell printed

Every field is documented by the line under it. No torch here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from neutral_residues.config.base import Settings, checked, read_overrides, read_values

COMPARISON, CELLS = "compare.yaml", "cells"
"""Names of a file and a folder in the output folder, which the report reads too."""


class MethodEntry(Settings):
    """One method of a comparison."""

    method: str
    """A method that `neutral methods` lists, or "module:NAME" for one of your own."""
    label: str | None = Field(default=None, min_length=1, pattern=r"^\w[\w.+-]*$")
    """Name in tables; null: the name of the method."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of this entry only, by dotted key, for example {residues.init: paper}."""


class CompareConfig(Settings):
    """A comparison: every combination of the listed values is a cell, that is, one run."""

    runs: tuple[Path, ...] = Field(min_length=1)
    """Run files with model, data and training. Their `method` and `output` are ignored; the
    sections residues and lora apply only to the methods that use them."""
    output: Path
    """Output folder of the comparison, with all of its runs."""
    methods: tuple[MethodEntry, ...] = Field(min_length=1)
    """Names of methods, or entries with a label and settings of their own."""
    budgets: tuple[float, ...] = ()
    """Values of `budget`, new weights as a share of the backbone's; empty: that of the run file."""
    learning_rate_factors: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Factors for the learning rate of each method: the one that is set, or else its default."""
    source_shares: tuple[float, ...] = ()
    """Values of `data.source_share`; empty: that of the run file."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Seeds of initialisation and of the order of rows."""
    tune: bool = False
    """Try all learning rates with the first seed only, and run the other seeds with the best one:
    that with the fewest bits per byte on the target sets of `data.validate_on`. The evaluation sets
    are never used to choose."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Settings of all cells, by dotted key, for example {training.steps: 200}."""
    jobs: int | None = Field(default=None, ge=1)
    """Number of cells that run at the same time; null: one per GPU, or 1 without a GPU. They share
    the CPU threads: `OMP_NUM_THREADS`, or one for each core that the process may use."""
    keep_weights: bool = True
    """False deletes the weights of all cells when all are done; the records are kept."""

    @field_validator("methods", mode="before")
    @classmethod
    def _names_are_entries(cls, methods: Any) -> Any:
        if not isinstance(methods, list | tuple):
            return methods
        return [{"method": entry} if isinstance(entry, str) else entry for entry in methods]

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        lists: dict[str, Sequence[Any]] = {
            "label of methods": [entry.label or entry.method for entry in self.methods],
            "run file": [path.stem for path in self.runs],
        }
        for name in ("budgets", "learning_rate_factors", "source_shares", "seeds"):
            lists[name] = getattr(self, name)
        for name, values in lists.items():
            for value in values:
                if values.count(value) > 1:
                    raise ValueError(f"{name}: {value} is given twice")
        if min(self.learning_rate_factors) <= 0:
            raise ValueError("learning_rate_factors must be above 0")
        return self


def load_comparison(path: Path, overrides: tuple[str, ...] = ()) -> CompareConfig:
    """Read a comparison file and apply overrides such as "seeds=[0,1]" or "set.training.steps=200".
    Raises a one-line UserError for the first invalid setting."""
    of_cells = [override for override in overrides if override.startswith("set.")]
    values = read_values(path, tuple(o for o in overrides if o not in of_cells))
    settings = read_overrides(tuple(override.removeprefix("set.") for override in of_cells))
    if settings:
        values["set"] = {**(values.get("set") or {}), **settings}
    return checked(CompareConfig, values)
