"""Runs the cells of a comparison: each resumable, in a process of its own, several at a time.

    first wave   everything that trains (when tuning: the first seed, at all learning rates)
    second wave  when tuning: the other seeds, at the learning rate that was best on validation text
    third wave   what is made of finished runs (weight averages)

A cell that fails leaves its reason (`failure.json`) and the rest goes on; the same command tries it
again and does nothing twice. Processes of their own keep a cell's memory its own, and a crash, or a
lack of memory, from the others.
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
"""What runs a cell; the cell's run file is its last argument."""


@dataclass(frozen=True)
class Outcome:
    """What became of a comparison, by the name of each cell."""

    records: dict[str, Record]
    failures: dict[str, str]  # why it failed


class CompareCallback:
    """Is told what happens in a comparison; override what you want to know."""

    def on_begin(self, num_cells: int) -> None:
        """Before the first cell; there may be fewer in the end, but not more."""

    def on_cell_begin(self, cell: Cell, log: Path) -> None:
        """A cell starts, and prints to the file `log`; called from a thread of its own."""

    def on_cell_end(self, cell: Cell, result: Record | str, seconds: float) -> None:
        """A cell ended with its record, or why it failed; 0 seconds: it was finished before."""

    def on_stop(self) -> None:
        """Ctrl-C: the running cells will now write their checkpoints."""


def compare(config: CompareConfig, *, callback: CompareCallback | None = None) -> Outcome:
    """Run every cell that is not done yet.

    Raises:
        UserError: before anything starts, for whatever can be checked then.
        KeyboardInterrupt: after Ctrl-C, once running cells have a checkpoint; a second kills them.
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
    """How many cells run at a time, and with how many threads each: together PyTorch's number
    (`OMP_NUM_THREADS`, or the cores that this process may use)."""
    jobs = config.jobs or max(1, torch.cuda.device_count())
    return jobs, max(1, torch.get_num_threads() // jobs)


def finished_records(cells: Sequence[Cell]) -> dict[str, Record]:
    """The records of those cells that are done: cell name -> record."""
    folders = {cell.name: RunFolder(cell.config.output) for cell in cells}
    return {n: read_record(folder.record) for n, folder in folders.items() if folder.is_finished}


@contextmanager
def _claimed(config: CompareConfig) -> Iterator[None]:
    """The output folder is this comparison's alone; the resolved file is written into it."""
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
    """SIGTERM raises KeyboardInterrupt too, in the main thread; others leave signals alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Runner:
    """A thread for each job, which waits for one process after another."""

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
        """All of these cells; those that are done already are only read."""
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
        """The cell's process, or None where everything is being stopped."""
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
                    start_new_session=True,  # Ctrl-C reaches it through us, once
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
        """Every running cell writes its checkpoint; a second Ctrl-C does not wait for it."""
        try:
            self._signal_all(signal.SIGTERM)  # SIGINT is ignored below nohup and &
            self.callback.on_stop()
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:
            self._signal_all(signal.SIGKILL)
            pool.shutdown(cancel_futures=True)

    def _signal_all(self, number: signal.Signals) -> None:
        with self.lock:  # no process is started from here on
            self.stopping = True
            for process in list(self.processes):
                process.send_signal(number)


def _gpus(jobs: int) -> list[str | None]:
    """For each job the GPU that its cells see, as in CUDA_VISIBLE_DEVICES; None: all there are."""
    num_gpus = torch.cuda.device_count()
    if num_gpus <= 1:
        return [None] * jobs
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
    return [names[job % num_gpus] for job in range(jobs)]


def _finished(folder: RunFolder, cell: Cell) -> Record | str:
    """The record of a cell that was finished before; why not, if it was of another run."""
    try:
        folder.check(cell.config)
        return read_record(folder.record)
    except UserError as error:
        return str(error)
