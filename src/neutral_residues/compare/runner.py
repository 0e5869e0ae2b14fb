"""Runs the cells of a comparison, several at a time, each in its own process and resumable.

    first wave   all cells that train (with tuning: the first seed, with all learning rates)
    second wave  with tuning: the other seeds, with the learning rate best on validation text
    third wave   cells that are made from finished runs (`wise-ft` and others)

If a cell fails, its reason is written to `failure.json`, and the other cells go on. The same
command runs failed cells again, and skips finished ones. Because each cell has its own process, a
crash or lack of memory in one does not affect the others.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from neutral_residues.compare.grid import Cell, best_factors, expand
from neutral_residues.config.base import to_yaml
from neutral_residues.config.comparison import CELLS, COMPARISON, CompareConfig
from neutral_residues.errors import UserError, exit_reason
from neutral_residues.files import disk_errors, locked, write_text
from neutral_residues.results.base import write_part
from neutral_residues.results.record import Failure, Record
from neutral_residues.results.run_folder import LOCK, RunFolder, check_free
from neutral_residues.results.store import read_record

PROGRAM = (sys.executable, "-m", "neutral_residues.cli.app", "extend", "--no-advice")
"""Command that runs a cell; the run file of the cell is its last argument."""


@dataclass(frozen=True)
class Outcome:
    """Results of a comparison, by the names of cells."""

    records: dict[str, Record]
    failures: dict[str, str]  # reason of each failed cell, in one line


class CompareCallback:
    """Callbacks for the progress of a comparison, like Transformers' `TrainerCallback`; override
    those that you need. They are called from several threads."""

    def on_begin(self, num_cells: int) -> None:
        """Called before the first cell, with the maximum number of cells."""

    def on_cell_begin(self, cell: Cell, log: Path) -> None:
        """Called when a cell starts; its output goes to the file `log`."""

    def on_cell_end(self, cell: Cell, result: Record | str, seconds: float) -> None:
        """Called when a cell has ended, with its record, or the reason of its failure. `seconds` is
        0 for a cell that was finished before."""

    def on_stop(self) -> None:
        """Called after Ctrl-C, when running cells have been asked to write their checkpoints."""


def compare(config: CompareConfig, *, callback: CompareCallback | None = None) -> Outcome:
    """Run all cells of a comparison that are not finished.

    Returns:
        The records of all cells, and the reasons of those that failed.

    Raises:
        UserError: before anything starts, for anything that can be checked then.
        KeyboardInterrupt: after Ctrl-C, once running cells have written a checkpoint. A second
            Ctrl-C kills them.
    """
    callback = callback or CompareCallback()
    cells = expand(config)
    with _claimed(config), _termination_is_an_interrupt():
        callback.on_begin(cells.at_most())
        runner = _Runner(config, callback)
        first = cells.first_wave()
        runner.run(first)
        best = best_factors(runner.outcome.records, first) if cells.tune else {}
        runner.run(cells.second_wave(best))
        runner.run(cells.third_wave(best))
        if not config.keep_weights:
            for name in runner.outcome.records:
                RunFolder(config.output / CELLS / name).drop_extension()
    return runner.outcome


def jobs_and_threads(config: CompareConfig) -> tuple[int, int]:
    """Number of cells that run at the same time, and of CPU threads for each: PyTorch's number of
    threads (`OMP_NUM_THREADS`, or the cores that this process may use) is divided among them."""
    jobs = config.jobs or max(1, torch.cuda.device_count())
    return jobs, max(1, torch.get_num_threads() // jobs)


def finished_records(cells: Sequence[Cell]) -> dict[str, Record]:
    """Name -> record, of those cells that are finished."""
    folders = {cell.name: RunFolder(cell.config.output) for cell in cells}
    return {n: read_record(folder.record) for n, folder in folders.items() if folder.is_finished}


@contextmanager
def _claimed(config: CompareConfig) -> Iterator[None]:
    """Context in which no other process runs a comparison in the output folder; writes the resolved
    comparison file into it. Raises a UserError if another process does, or for other files."""
    file = config.output / COMPARISON
    with disk_errors(config.output):
        is_a_comparison = file.is_file()
    if not is_a_comparison:
        check_free(config.output, but=(LOCK,))

    def refuse() -> None:
        what = f"another process is running the comparison in {config.output}"
        raise UserError(what, do="wait for it")

    with locked(config.output / LOCK, on_wait=refuse):
        write_text(file, to_yaml(config))
        yield


@contextmanager
def _termination_is_an_interrupt() -> Iterator[None]:
    """Context in which SIGTERM raises KeyboardInterrupt too. Only the main thread can set this; in
    other threads nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Runner:
    """Runs cells in `jobs` threads, each of which starts and waits for one process at a time."""

    def __init__(self, config: CompareConfig, callback: CompareCallback) -> None:
        self.config, self.callback = config, callback
        self.outcome = Outcome({}, {})
        self.jobs, self.threads = jobs_and_threads(config)
        self.gpus: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for gpu in _gpus(self.jobs):
            self.gpus.put(gpu)
        self.lock = threading.Lock()
        self.processes: set[subprocess.Popen[bytes]] = set()
        self.stopping = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Run these cells; of finished ones, only read the record."""
        pool = ThreadPoolExecutor(self.jobs)
        try:
            for future in as_completed([pool.submit(self._run_cell, cell) for cell in cells]):
                future.result()
        except BaseException:
            self._stop(pool)
            raise
        pool.shutdown()

    def _run_cell(self, cell: Cell) -> None:
        folder = RunFolder(cell.config.output)
        if folder.is_finished:
            self._end(cell, _finished(folder, cell), seconds=0)
            return
        plan = self.config.output / "plan" / f"{cell.name}.yaml"
        log = self.config.output / "logs" / f"{cell.name}.log"
        write_text(plan, to_yaml(cell.config))
        start, gpu = time.monotonic(), self.gpus.get()
        try:
            process = self._start(plan, log, gpu)
            if process is None:
                return
            self.callback.on_cell_begin(cell, log)
            process.wait()
            self.processes.discard(process)
        finally:
            self.gpus.put(gpu)
        result: Record | str
        if process.returncode == 0 and folder.is_finished:
            result = read_record(folder.record)
            folder.failure.unlink(missing_ok=True)
        elif self.stopping:
            return
        else:
            output = log.read_text(encoding="utf-8", errors="replace")
            result = exit_reason(process.returncode, output)
            failure = Failure(label=cell.config.label or cell.config.method, reason=result)
            write_part(folder.failure, failure)
        self._end(cell, result, seconds=time.monotonic() - start)

    def _start(self, plan: Path, log: Path, gpu: str | None) -> subprocess.Popen[bytes] | None:
        """Start the process of a cell; None if the comparison is being stopped."""
        threads = str(self.threads)
        environment = os.environ | {"OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as file, self.lock:
                if self.stopping:
                    return None
                process = subprocess.Popen(
                    [*PROGRAM, str(plan)],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=environment | {"COLUMNS": "200"},
                    start_new_session=True,  # else it would get Ctrl-C twice: `_stop` sends SIGTERM
                )
                self.processes.add(process)
                return process

    def _end(self, cell: Cell, result: Record | str, *, seconds: float) -> None:
        with self.lock:
            if isinstance(result, str):
                self.outcome.failures[cell.name] = result
            else:
                self.outcome.records[cell.name] = result
        self.callback.on_cell_end(cell, result, seconds)

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Ask running cells to write checkpoints, and wait for them; a second Ctrl-C kills them."""
        try:
            self._signal_all(signal.SIGTERM)  # SIGINT is ignored under nohup and with &
            self.callback.on_stop()
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            self._signal_all(signal.SIGKILL)
            pool.shutdown(cancel_futures=True)

    def _signal_all(self, number: signal.Signals) -> None:
        with self.lock:  # no process starts after this
            self.stopping = True
            for process in list(self.processes):
                process.send_signal(number)


def _gpus(jobs: int) -> list[str | None]:
    """For each job, the GPU of its cells, as in CUDA_VISIBLE_DEVICES; None: all that there are."""
    num_gpus = torch.cuda.device_count()
    if num_gpus <= 1:
        return [None] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
    return [names[job % num_gpus] for job in range(jobs)]


def _finished(folder: RunFolder, cell: Cell) -> Record | str:
    """The record of a cell that was finished before, or the error if it cannot be used."""
    try:
        folder.check(cell.config)
        return read_record(folder.record)
    except UserError as error:
        return str(error)
