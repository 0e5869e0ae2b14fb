"""What a report is made of: records and benchmarks, found behind the paths that a person gives.

A path is the file of a benchmark, a record file, the output folder of a run, or the folder of a
comparison (`compare.yaml`, and below `cells/` one folder for each run: with a record, with a
failure, or with neither while it is not done). No numbers here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neutral_residues.config.comparison import CELLS, COMPARISON
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors
from neutral_residues.results.benchmark import Benchmark, is_benchmark, read_benchmark
from neutral_residues.results.record import Record
from neutral_residues.results.store import read_failure, read_record

RECORD, FAILURE, RUN = "record.json", "failure.json", "run.yaml"


@dataclass(frozen=True)
class Found:
    """A record and where it lay.

    Attributes:
        origin: path as the report shows it: from the given folder on, so nothing of the machine is
            in it.
    """

    origin: str
    record: Record


@dataclass(frozen=True)
class Unfinished:
    """A run of a comparison without a record.

    Attributes:
        origin: path of its folder, as in `Found`.
        label: how tables call it; empty where that is not known.
        reason: why it failed, in one line; None where it is just not done.
    """

    origin: str
    label: str
    reason: str | None


@dataclass(frozen=True)
class Collection:
    """All that was found: records in the order of the paths, what is missing, and benchmarks."""

    found: tuple[Found, ...]
    unfinished: tuple[Unfinished, ...]
    benchmarks: tuple[Benchmark, ...] = ()


def collect(paths: Sequence[Path]) -> Collection:
    """All records behind `paths`; one that is reached twice counts once.

    Raises:
        UserError: if a path is none of these kinds, a record cannot be read, or there is none at
            all.
    """
    found: dict[Path, Found] = {}
    unfinished: dict[Path, Unfinished] = {}
    benchmarks: dict[Path, Benchmark] = {}
    for path in paths:
        for file in _files(path):
            if file.name == FAILURE:
                failure = read_failure(file)
                unfinished[file.resolve()] = Unfinished(
                    _origin(path, file.parent), failure.label, failure.reason
                )
            elif file.is_dir():
                unfinished[file.resolve()] = Unfinished(_origin(path, file), "", None)
            elif is_benchmark(file):
                benchmarks.setdefault(file.resolve(), read_benchmark(file))
            else:
                found.setdefault(file.resolve(), Found(_origin(path, file), read_record(file)))
    if not found and not benchmarks:
        state = f"; {len(unfinished)} runs failed or are not done" if unfinished else ""
        raise UserError(
            f"no record in {', '.join(map(str, paths)) or 'nothing'}{state}",
            do="finish a run first",
        )
    return Collection(tuple(found.values()), tuple(unfinished.values()), tuple(benchmarks.values()))


def _files(path: Path) -> Iterator[Path]:
    """Record and failure files behind one path, and the folders of runs that have neither."""
    if path.is_file():
        yield path
    elif (path / COMPARISON).is_file():
        if (path / CELLS).is_dir():
            yield from _cells(path / CELLS)
    elif (path / RECORD).is_file():
        yield path / RECORD
    elif not path.exists():
        raise UserError(f"no such file or folder: {path}", do="check the path")
    else:
        not_done = (
            "a run that is not finished"
            if (path / RUN).is_file()
            else "neither a run nor a comparison"
        )
        allowed = "a record.json, a folder with one, or the folder of a comparison (compare.yaml)"
        raise UserError(f"nothing to report in {path}", got=not_done, allowed=allowed)


def _cells(folder: Path) -> Iterator[Path]:
    with disk_errors(folder):
        inside = sorted(folder.iterdir())
    by_name = {path.name: path for path in inside}
    folders = [path for path in inside if path.is_dir() and not path.name.startswith(".")]
    if RECORD in by_name:
        yield by_name[RECORD]
    elif FAILURE in by_name:
        yield by_name[FAILURE]
    elif folder.name != CELLS and (RUN in by_name or not folders):
        yield folder
    else:
        for path in folders:
            yield from _cells(path)


def _origin(given: Path, file: Path) -> str:
    top = given.resolve()
    return (Path(top.name) / file.resolve().relative_to(top)).as_posix()
