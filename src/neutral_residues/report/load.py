"""Finds the records and benchmarks of a report behind the paths that a user gives.

A path is a record or a benchmark (JSON), the output folder of a run, or the folder of a comparison
(`compare.yaml`, and below `cells/` one folder for each run: with a record, with a failure, or with
`run.yaml` alone while it is not done). A comparison may be packed into one file, as those of this
repository are (`recipes/pack_records.py`). No numbers here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neutral_residues.config.comparison import CELLS, COMPARISON
from neutral_residues.data.lines import iter_lines, iter_objects
from neutral_residues.errors import UserError
from neutral_residues.files import MOST_BYTES, check_plain, disk_errors
from neutral_residues.results.base import part_in
from neutral_residues.results.benchmark import Benchmark, is_benchmark, read_benchmark
from neutral_residues.results.record import Failure, Record
from neutral_residues.results.store import read_failure, read_record

RECORD, FAILURE, RUN = "record.json", "failure.json", "run.yaml"


@dataclass(frozen=True)
class Found:
    """A record and its place."""

    origin: str  # path from the given folder on, so that nothing of the machine is in the report
    record: Record


@dataclass(frozen=True)
class Unfinished:
    """A run of a comparison without a record."""

    origin: str  # path of its folder, as in `Found`
    label: str  # its name in tables; empty if not known
    reason: str | None  # why it failed, in one line; None if it is not finished


@dataclass(frozen=True)
class Collection:
    """Everything that was found: records in the order of the paths, unfinished runs, and
    benchmarks."""

    found: tuple[Found, ...]
    unfinished: tuple[Unfinished, ...]
    benchmarks: tuple[Benchmark, ...] = ()


def collect(paths: Sequence[Path]) -> Collection:
    """All records behind `paths`; one that is found twice counts once. A UserError if a path is
    none of these kinds, a record cannot be read, or there is none at all."""
    origins: dict[Path, str] = {}
    for path in paths:
        top = path.resolve()
        for file in map(Path.resolve, _files(path)):
            origins.setdefault(file, (Path(top.name) / file.relative_to(top)).as_posix())
    items = [item for file, origin in origins.items() for item in _read(file, origin)]
    found = tuple(item for item in items if isinstance(item, Found))
    unfinished = tuple(item for item in items if isinstance(item, Unfinished))
    benchmarks = tuple(item for item in items if isinstance(item, Benchmark))
    if not found and not benchmarks:
        state = f"; {len(unfinished)} runs failed or are not done" if unfinished else ""
        where = ", ".join(map(str, paths)) or "nothing"
        raise UserError(f"no record in {where}{state}", do="finish a run first")
    return Collection(found, unfinished, benchmarks)


def _read(file: Path, origin: str) -> Iterator[Found | Unfinished | Benchmark]:
    """The content of one of the files of `_files`."""
    if file.name == RUN:
        yield Unfinished(origin.rpartition("/")[0], "", None)
    elif file.name == FAILURE:
        yield _item(origin, read_failure(file))
    elif file.suffix == ".gz":
        yield from _packed(file)
    elif is_benchmark(file):
        yield read_benchmark(file)
    else:
        yield _item(origin, read_record(file))


def _item(origin: str, read: Record | Failure) -> Found | Unfinished:
    if isinstance(read, Record):
        return Found(origin, read)
    return Unfinished(origin.rpartition("/")[0], read.label, read.reason)


def _packed(file: Path) -> Iterator[Found | Unfinished]:
    """The content of a packed comparison: a line for each record or failure, with its path."""
    for where, entry in iter_objects(iter_lines(file, at_most=MOST_BYTES)):
        check_plain(entry, where)
        path = entry.get("path")
        if not isinstance(path, str) or "content" not in entry:
            what, got = f"{where} is not of a packed comparison", ", ".join(entry) or "{}"
            raise UserError(what, got=got, allowed='{"path": ..., "content": ...}')
        schema: type[Record | Failure] = Failure if path.endswith(FAILURE) else Record
        read = part_in(schema, entry["content"], f"{path} in {file}", "record")
        yield _item(f"{file.name}/{path}", read)


def _files(path: Path) -> Iterator[Path]:
    """The files behind one path; for each cell of a comparison the most informative one."""
    if path.is_file():
        yield path
    elif (path / COMPARISON).is_file():
        with disk_errors(path):
            files = [f for name in (RUN, FAILURE, RECORD) for f in path.glob(f"{CELLS}/**/{name}")]
        best = {file.parent: file for file in files}  # the last of a folder
        yield from (best[folder] for folder in sorted(best))
    elif (path / RECORD).is_file():
        yield path / RECORD
    elif not path.exists():
        raise UserError(f"no such file or folder: {path}", do="check the path")
    else:
        is_run = (path / RUN).is_file()
        raise UserError(
            f"nothing to report in {path}",
            got="a run that is not finished" if is_run else "neither a run nor a comparison",
            allowed="a record.json, a folder with one, or a comparison (compare.yaml)",
        )
