"""Runs the cells of a comparison: each in a process of its own, several side by side, every one
resumable.

    first wave    everything that trains (when tuning: the first seed, at all learning rates)
    second wave   when tuning: the other seeds, at the learning rate that did best on validation text
    third wave    what is made of finished runs (weight averages)

A cell that fails leaves its reason (`failure.json`) and the rest goes on; the same command tries it
again and does nothing twice. Processes of their own keep a cell's memory its own, and a crash, or a
lack of memory, from the others.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

import filelock
import torch
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from neutral_residues.compare.grid import Cell, Cells, best_factors, expand
from neutral_residues.config.base import dump_run
from neutral_residues.config.comparison import CELLS, COMPARISON, CompareConfig
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, write_json, write_text
from neutral_residues.results.record import Failure, Record
from neutral_residues.results.run_folder import LOCK, RunFolder, check_free
from neutral_residues.results.store import find, read_record

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Outcome:
    """What became of a comparison.

    Attributes:
        records: cell name -> its record.
        failures: cell name -> why it failed.
    """

    records: dict[str, Record]
    failures: dict[str, str]


def compare(config: CompareConfig, *, console: Console | None = None) -> Outcome:
    """Run every cell that is not done yet.

    Raises:
        UserError: before anything starts, for whatever can be checked then.
        KeyboardInterrupt: after Ctrl-C, when every running cell has written its checkpoint.
    """
    console = console or Console(stderr=True)
    cells = expand(config)
    with _claimed(config):
        runner = _Runner(config, console, total=cells.at_most())
        with runner.showing():
            _run_waves(cells, runner)
        if not config.keep_weights:
            _remove_weights(runner.outcome.records, config.output)
    return runner.outcome


def _run_waves(cells: Cells, runner: "_Runner") -> None:
    first = cells.first_wave()
    runner.run(first)
    best = best_factors(runner.outcome.records, first) if cells.tune else {}
    runner.run(cells.second_wave(best))
    runner.run(cells.third_wave(best))


def shares_of_machine(config: CompareConfig) -> tuple[int, int]:
    """How many cells run side by side, and with how many threads each."""
    jobs = config.jobs or max(1, torch.cuda.device_count())
    return jobs, max(1, (os.cpu_count() or 1) // jobs)


def finished_records(config: CompareConfig, cells: Sequence[Cell]) -> dict[str, Record]:
    """The records of those cells that are done: cell name -> record."""
    return {
        c.name: read_record(f.record)
        for c in cells
        if (f := RunFolder(c.config.output)).is_finished
    }


@contextmanager
def _claimed(config: CompareConfig) -> Iterator[None]:
    """The output folder is this comparison's alone; the resolved file is written into it."""
    file = config.output / COMPARISON
    with disk_errors(config.output):
        if not file.is_file():
            check_free(config.output, but=(LOCK,))
        config.output.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(config.output / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(
                f"another process is running the comparison in {config.output}", do="wait for it"
            ) from error
    try:
        write_text(file, dump_run(config))
        yield
    finally:
        lock.release()


def _remove_weights(records: dict[str, Record], output: Path) -> None:
    for name in records:
        RunFolder(output / CELLS / name).drop_extension()


@dataclass
class _Running:
    """A cell at work."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    slot: int
    started: float = field(default_factory=time.monotonic)

    def last_line(self) -> str:
        """What it said last."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].strip() if lines else "starting"

    def reason(self) -> str:
        """Why it ended badly: its one-line error if it had one."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if errors:
            return errors[-1]
        if self.process.returncode < 0:
            name = signal.Signals(-self.process.returncode).name
            return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        return lines[-1].strip()[:300] if lines else f"exit code {self.process.returncode}"


class _Runner:
    """Starts cells as slots become free, and keeps what came of them."""

    def __init__(self, config: CompareConfig, console: Console, *, total: int) -> None:
        self.config, self.console = config, console
        self.outcome = Outcome({}, {})
        self.num_gpus = torch.cuda.device_count()
        self.jobs, self.threads = shares_of_machine(config)
        self.running: list[_Running] = []
        self.stopping = False
        self.progress = Progress(
            TextColumn("cells"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.progress.add_task("cells", total=total)
        self.live: Live | None = None

    @contextmanager
    def showing(self) -> Iterator[None]:
        """A live panel on a terminal; elsewhere a line for each cell."""
        with _stop_on_signal(self):
            try:
                if not self.console.is_terminal:
                    yield
                    return
                with Live(self._panel(), console=self.console, refresh_per_second=4) as self.live:
                    yield
            finally:
                self._let_go()  # nothing is running any more unless we were stopped, or broke

    def run(self, cells: Sequence[Cell]) -> None:
        """All of these cells, those that are done already left alone."""
        waiting = [cell for cell in cells if not self._take_finished(cell)]
        waiting.reverse()
        while waiting or self.running:
            if self.stopping:
                self._say("stopping: every running cell writes its checkpoint ...")
                raise KeyboardInterrupt
            while waiting and len(self.running) < self.jobs:
                self.running.append(self._start(waiting.pop()))
            time.sleep(POLL_SECONDS)
            for one in [one for one in self.running if one.process.poll() is not None]:
                self.running.remove(one)
                self._ended(one)
            self._refresh()

    def _take_finished(self, cell: Cell) -> bool:
        folder = RunFolder(cell.config.output)
        if not folder.is_finished:
            return False
        try:
            folder.check(cell.config)
            self.outcome.records[cell.name] = read_record(folder.record)
        except UserError as error:
            self._failed(cell, str(error))
        self.progress.advance(self.task)
        return True

    def _start(self, cell: Cell) -> _Running:
        plan = self.config.output / "plan" / f"{cell.name}.yaml"
        log = self.config.output / "logs" / f"{cell.name}.log"
        write_text(plan, dump_run(cell.config))
        slot = min(set(range(self.jobs)) - {one.slot for one in self.running})
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file:
                return _Running(cell, self._process(plan, file, slot), log, slot)

    def _process(self, plan: Path, log: IO[bytes], slot: int) -> subprocess.Popen[bytes]:
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads), "COLUMNS": "200"}
        if self.num_gpus > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
                map(str, range(self.num_gpus))
            )
            environment["CUDA_VISIBLE_DEVICES"] = visible.split(",")[slot % self.num_gpus]
        return subprocess.Popen(
            [sys.executable, "-m", "neutral_residues.cli.app", "extend", "--no-advice", str(plan)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )

    def _ended(self, one: _Running) -> None:
        cell = one.cell
        folder = RunFolder(cell.config.output)
        if folder.is_finished and one.process.returncode == 0:
            record = read_record(folder.record)
            self.outcome.records[cell.name] = record
            folder.failure.unlink(missing_ok=True)
            self._say(f"{cell.name}  {_sides(record)}  {time.monotonic() - one.started:.0f} s")
        elif not self.stopping:
            self._failed(cell, one.reason())
        self.progress.advance(self.task)

    def _failed(self, cell: Cell, reason: str) -> None:
        self.outcome.failures[cell.name] = reason
        label = cell.config.label or cell.config.method
        if not RunFolder(cell.config.output).is_finished:
            failure = Failure(label=label, reason=reason)
            write_json(RunFolder(cell.config.output).failure, failure.model_dump(mode="json"))
        self._say(f"{cell.name}  failed: {reason}")

    def _let_go(self) -> None:
        """Ask every running cell for a checkpoint and wait for it."""
        for one in self.running:
            one.process.send_signal(signal.SIGINT)
        for one in self.running:
            one.process.wait()

    def _say(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _panel(self) -> Group:
        lines = [
            Text(f"  {one.cell.name}  {one.last_line()}", no_wrap=True, overflow="ellipsis")
            for one in self.running
        ]
        return Group(self.progress, *lines)

    def _refresh(self) -> None:
        if self.live is not None:
            self.live.update(self._panel())


def _sides(record: Record) -> str:
    """Both sides in a few words: change of each set in per cent."""
    sets = [
        metric
        for metric in record.metrics
        if metric.name == "bits_per_byte" and metric.of == "extended"
    ]
    before = {m.set: find(record, "bits_per_byte", set=m.set, of="backbone").value for m in sets}
    return "  ".join(f"{m.set} {100 * (m.value / before[m.set] - 1):+.2f} %" for m in sets)


@contextmanager
def _stop_on_signal(runner: _Runner) -> Iterator[None]:
    """Ctrl-C and termination let the running cells write their checkpoints; a second Ctrl-C kills
    them."""

    def ask(number: int, frame: FrameType | None) -> None:
        if runner.stopping:
            for one in runner.running:
                one.process.kill()
        runner.stopping = True

    handlers: dict[int, Any] = {
        number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
