"""Results of a benchmark in one JSON file, which the report draws: ratios of times or memory, with
theoretical bounds. No torch.

    write_benchmark(path, Benchmark(name="inference", rows=[Measured(...)], ...))

Times are only comparable within one run, as ratios: every row names its baseline, and the ratio is
the median over rounds in which both were measured in turn.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field

from neutral_residues.files import check_is_file, disk_errors
from neutral_residues.results.base import Part, read_part, write_part
from neutral_residues.results.record import Provenance

BENCHMARK_FORMAT: Literal["neutral-residues/benchmark"] = "neutral-residues/benchmark"


class Measured(Part):
    """One measurement, relative to a baseline that was measured in turn with it."""

    group: str = Field(min_length=1)
    """What was measured, for example "decode, source text"; rows of a group share an x axis."""
    name: str = Field(min_length=1)
    """The variant, for example "skip" or "lora"."""
    against: str = Field(min_length=1)
    """The baseline, whose own row has ratio 1."""
    quantity: Literal["time", "memory"] = "time"
    """The quantity of `ratio` and `value`."""
    ratio: float = Field(gt=0)
    """Median over rounds of value / value of `against`."""
    bound: float | None = Field(default=None, gt=0)
    """The ratio expected from the number of operations or of bytes read; null if not known."""
    value: float = Field(ge=0)
    """Median over rounds, in seconds or bytes, on this machine; not comparable between files."""
    x: float | None = None
    """Position of the row on the x axis of its group: tokens, width, layers, ..."""
    x_label: str | None = None
    """Label of that axis."""


class Benchmark(Part):
    """One run of one script in `benchmarks/`."""

    format: Literal["neutral-residues/benchmark"] = BENCHMARK_FORMAT
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    name: str = Field(min_length=1)
    """Name of the script."""
    title: str = Field(min_length=1)
    """Title of the figure."""
    command: str
    """The command line."""
    threads: int = Field(ge=1)
    """CPU threads."""
    rounds: int = Field(ge=1)
    """Number of rounds; medians are taken over them."""
    settings: dict[str, str | int | float] = Field(default={})
    """Model, number of tokens, rows and other sizes."""
    provenance: Provenance
    """Versions of the code, and the machine."""
    rows: list[Measured]
    """The measurements."""


def write_benchmark(path: Path, benchmark: Benchmark) -> None:
    """Write `benchmark` as JSON, atomically."""
    write_part(path, benchmark)


def is_benchmark(path: Path) -> bool:
    """Whether the file at `path` begins as a benchmark file does."""
    check_is_file(path)
    with disk_errors(path), path.open("rb") as file:
        return BENCHMARK_FORMAT.encode() in file.read(200)


def read_benchmark(path: Path) -> Benchmark:
    """Read a benchmark file; raises a UserError as `read_part` does."""
    return read_part(Benchmark, path, "benchmark")
