"""What a benchmark measured, with the bound that follows from arithmetic: one JSON file that the
report draws. No torch.

    write_benchmark(path, Benchmark(name="inference", rows=[Measured(...)], ...))

Times compare only within one run, as ratios: every row names its baseline, and the ratio is the
median over rounds in which both took turns.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from neutral_residues.files import check_is_file, disk_errors
from neutral_residues.results.base import Part, read_part, write_part
from neutral_residues.results.record import Provenance

BENCHMARK_FORMAT: Literal["neutral-residues/benchmark"] = "neutral-residues/benchmark"


class Measured(Part):
    """One measurement, relative to a baseline that took turns with it."""

    group: str = Field(min_length=1)
    """What was done, for example "decode, source text"; rows of a group share an axis."""
    name: str = Field(min_length=1)
    """The variant, for example "skip" or "lora"."""
    against: str = Field(min_length=1)
    """The baseline, whose own row has ratio 1."""
    quantity: Literal["time", "memory"] = "time"
    """What the ratio is of."""
    ratio: float = Field(gt=0)
    """Median over rounds of its value by that of `against`."""
    bound: float | None = Field(default=None, gt=0)
    """The same ratio by arithmetic (operations or bytes read); null if not known."""
    value: float = Field(ge=0)
    """Median, in seconds or bytes, on this machine; does not compare across files."""
    x: float | None = None
    """The row's value on its group's axis: tokens, width, layers, ..."""
    x_label: str | None = None
    """The name of that axis."""


class Benchmark(Part):
    """One run of one script in `benchmarks/`."""

    format: Literal["neutral-residues/benchmark"] = BENCHMARK_FORMAT
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    name: str = Field(min_length=1)
    """The script."""
    title: str = Field(min_length=1)
    """Title of the figure."""
    command: str
    """The command line."""
    threads: int = Field(ge=1)
    """CPU threads."""
    rounds: int = Field(ge=1)
    """Rounds that the medians are over."""
    settings: dict[str, str | int | float] = Field(default={})
    """Sizes: model, tokens, rows, ..."""
    provenance: Provenance
    """Code and machine."""
    rows: list[Measured]
    """What was measured."""


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Write it as JSON, whole or not at all."""
    write_part(path, benchmark)


def is_benchmark(path: Path) -> bool:
    """Whether the file says that it holds a benchmark."""
    check_is_file(path)
    with disk_errors(path), path.open("rb") as file:
        return BENCHMARK_FORMAT.encode() in file.read(200)


def read_benchmark(path: Path) -> Benchmark:
    """The benchmark in that file; a UserError as of `read_part`."""
    return read_part(Benchmark, path, "benchmark")
