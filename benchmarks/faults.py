"""Tests that runs survive faults: kills, full disks, two processes, a clock that is set back.

    python benchmarks/faults.py                                  every fault, a few trials each
    python benchmarks/faults.py --fault kill --trials 1000       a night
    python benchmarks/faults.py --fault comparison --trials 20   kills of one comparison

A trial starts `neutral extend` on a tiny backbone, disturbs it, and runs the same command again
until it succeeds. Weights, measurements, log and model card must then be those of an undisturbed
run, bit for bit, and there must be no incomplete files in the output folder or the cache. A command
that failed must have printed a one-line error, with exit code 2.

    kill         SIGKILL at random moments, until a command ends before it is killed
    operation    SIGKILL right before the n-th change to the file system, for many n
    full         the disk is full from the n-th file that is opened for writing
    read-only    the file system is read-only from the n-th change
    quota        a file system (tmpfs, needs root) of a random size, too small for the run
    two          two processes on one output folder, one of them killed at a random moment
    clock        the clock is set back by days during the run, and the run is killed
    comparison   `neutral compare` of 8 cells: it, its cells or all of them are killed at random

Runs are forked from this process, which has imported everything, so that a trial takes a second.
`operation`, `full` and `read-only` use Python's audit hook, and so affect only changes by Python;
writes of libraries in Rust and C++ are covered by `kill` and `quota`.
"""

import argparse
import errno
import gc
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before importing torch, whose threads do not survive a fork

import yaml

import neutral_residues.run
from neutral_residues.cli import app
from neutral_residues.training.checkpoints import complete_checkpoints

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from tiny_run import SOURCE_WORDS, TARGET_WORDS, make_text, run_values

assert neutral_residues.run  # with all that a run imports

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
VOLATILE = ("created", "cost", "provenance")
"""Keys of a record that differ between two equal runs: times."""
DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # below 0: killed by that signal
    said: str
    seconds: float

    @property
    def wrong(self) -> str:
        """What is wrong with the end of the command, or "". Being killed is not wrong."""
        error = self.said.rpartition("error: ")[2].strip()
        if "Traceback" in self.said:
            return "a traceback: " + self.said.strip().splitlines()[-1]
        if self.code == 2 and ("error: " not in self.said or "\n" in error):
            return f"exit code 2 without one line that says why: {self.said[-300:]!r}"
        return f"exit code {self.code}: {self.said[-300:]!r}" if self.code > 2 else ""


@dataclass
class Trial:
    """One folder in which a run is disturbed."""

    folder: Path
    random: random.Random
    whole: "Whole"
    at: int  # number of the change to the file system at which it is disturbed
    disturbed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def command(self, hook: Callable[[], None] | None = None, log: str = "log") -> "Command":
        """Start the run of this trial."""
        return Command(self.folder, hook, log)

    def ended(self, command: "Command") -> Ended:
        """Wait for a command, and record what is wrong with its end."""
        ended = command.wait()
        if ended.wrong:
            self.wrong.append(ended.wrong)
        return ended

    def kill(self, command: "Command") -> bool:
        """Kill a command at a random moment; False if it ended before."""
        if command.lives_for(self.random.uniform(0, 1.1 * self.whole.seconds)):
            self.disturbed[f"while {phase(self.folder)}"] += 1
            os.kill(command.pid, signal.SIGKILL)
            return True
        return False


@dataclass(frozen=True)
class Whole:
    """An undisturbed run, with which others are compared."""

    results: dict[str, str]
    seconds: float
    changes: int  # number of its changes to the file system
    bytes: int  # disk space that it needs


class Command:
    """`neutral extend` in a forked process."""

    def __init__(self, folder: Path, hook: Callable[[], None] | None, log: str) -> None:
        self.log, self.start = folder.with_name(log), time.monotonic()
        self.ended: Ended | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(folder, hook)

    def _run(self, folder: Path, hook: Callable[[], None] | None) -> None:
        code = 1
        try:
            output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.argv = ["neutral", "extend", "--no-advice", str(folder / "run.yaml")]
            if hook is not None:
                hook()
            app.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code if isinstance(stopped.code, int) else 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def lives_for(self, seconds: float) -> bool:
        """Whether the command still runs after this time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._poll(os.WNOHANG):
                return False
            time.sleep(0.002)
        return not self._poll(os.WNOHANG)

    def wait(self) -> Ended:
        """Wait for the end of the command."""
        self._poll(0)
        assert self.ended is not None
        return self.ended

    def _poll(self, options: int) -> bool:
        if self.ended is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                said = self.log.read_text(encoding="utf-8", errors="replace")
                seconds = time.monotonic() - self.start
                self.ended = Ended(os.waitstatus_to_exitcode(status), said, seconds)
        return self.ended is not None


def phase(folder: Path) -> str:
    """What a run in this folder was doing, as far as its files show."""
    run = folder / "run"
    if (run / "record.json").exists():
        return "finishing"
    if (run / "extension").exists():
        return "measuring"
    if complete_checkpoints(run / "checkpoints"):
        return "training, with a checkpoint"
    return "training, without a checkpoint" if (run / "run.yaml").exists() else "tokenising"


# ---------------------------------------------------------------- faults


def kill(trial: Trial) -> None:
    """Kill the run at random moments, until it succeeds."""
    while trial.kill(command := trial.command()):
        command.wait()
    trial.ended(command)


def operation(trial: Trial) -> None:
    """Kill the run right before one change to the file system."""
    ended = trial.command(_at_change(trial.at, _die)).wait()
    if ended.code == -signal.SIGKILL:
        trial.disturbed[f"while {phase(trial.folder)}"] += 1


def full(trial: Trial) -> None:
    """No disk space from one file on."""
    trial.ended(
        trial.command(_at_change(trial.at, _refuse(errno.ENOSPC), only_new=True, then=True))
    )
    trial.disturbed[f"while {phase(trial.folder)}"] += 1


def read_only(trial: Trial) -> None:
    """A read-only file system from one change on."""
    trial.ended(trial.command(_at_change(trial.at, _refuse(errno.EROFS), then=True)))
    trial.disturbed[f"while {phase(trial.folder)}"] += 1


def quota(trial: Trial) -> None:
    """A file system that is too small, and then large enough."""

    def remount(num_bytes: int, *options: str) -> None:
        size = f"size={num_bytes},mode=755"
        subprocess.run(["mount", *options, size, "tmpfs", str(trial.folder)], check=True)

    there = du(trial.folder)
    with tempfile.TemporaryDirectory() as aside:
        shutil.copytree(trial.folder, aside, dirs_exist_ok=True)
        remount(there + trial.random.randrange(trial.whole.bytes), "-t", "tmpfs", "-o")
        shutil.copytree(aside, trial.folder, dirs_exist_ok=True)
    if trial.ended(trial.command()).code == 2:
        trial.disturbed[f"while {phase(trial.folder)}"] += 1
    remount(there + 4 * trial.whole.bytes, "-o", "remount", "-o")


def two(trial: Trial) -> None:
    """Two processes at the same time, of which one is killed."""
    first, second = trial.command(), trial.command(log="log-of-second")
    if trial.kill(first):
        first.wait()
    trial.ended(second)


def clock(trial: Trial) -> None:
    """A clock that is set back during the run, and again after a kill."""
    command = trial.command(_set_clock_back(trial.random.randrange(1, 200)))
    if trial.kill(command):
        command.wait()
    trial.ended(trial.command(_set_clock_back(0)))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(number: int) -> Callable[[], None]:
    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _at_change(
    at: int, act: Callable[[], None], *, only_new: bool = False, then: bool = False
) -> Callable[[], None]:
    """A function that installs an audit hook, which calls `act` right before the change to the file
    system with index `at`.

    Args:
        only_new: not for removals, which a full disk allows.
        then: at all later changes too.
    """
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if is_change(event, arguments):
            seen += 1
            due = seen > at if then else seen == at + 1
            if due and (event in ("open", "os.mkdir") or not only_new):
                act()

    return lambda: sys.addaudithook(hook)


def is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is a change to the file system."""
    if event != "open":
        return event in CHANGES
    path, _, flags = arguments
    on_disk = not (isinstance(path, int) or str(path).startswith(("/dev/", "/proc/")))
    return on_disk and isinstance(flags, int) and bool(flags & WRITES)


def _set_clock_back(after_calls: int) -> Callable[[], None]:
    """A function that installs a clock, which goes back by three days after `after_calls` calls."""
    real, calls = time.time, 0

    def now() -> float:
        nonlocal calls
        calls += 1
        return real() - (3 * DAY_SECONDS if calls > after_calls else 0)

    return lambda: setattr(time, "time", now)


# ---------------------------------------------------------------- results


def results(folder: Path) -> dict[str, str]:
    """The files of a finished run -> their digests, including files that should not exist."""
    run = folder / "run"
    return {
        str(path.relative_to(folder)): digest(path)
        for part in (run, folder / "cache")
        for path in sorted(part.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


def digest(path: Path) -> str:
    """Digest of the contents of a file, without times."""
    data = path.read_bytes()
    if path.name == "record.json":
        record = json.loads(data)
        kept = {name: value for name, value in record.items() if name not in (*VOLATILE, "digest")}
        data = json.dumps(kept, sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def differences(whole: dict[str, str], found: dict[str, str]) -> list[str]:
    """The differences between two results, in words."""
    missing = [f"{name} is missing" for name in whole.keys() - found.keys()]
    more = [f"{name} was left" for name in found.keys() - whole.keys()]
    other = [
        f"{name} differs" for name in whole.keys() & found.keys() if whole[name] != found[name]
    ]
    return sorted(missing + more + other)


def du(folder: Path) -> int:
    """Disk space of a folder in bytes, in whole pages."""
    return sum(4096 * (path.stat().st_size // 4096 + 1) for path in folder.rglob("*"))


# ---------------------------------------------------------------- trials


def prepare(folder: Path) -> None:
    """Write a run file into `folder` that uses all parts of a run. Its paths are relative, so that
    all trials have equal run files."""
    folder.mkdir(parents=True)
    values = run_values(folder, steps=8, save_every=2)
    task = [
        {"query": f"{a} {b}", "choices": [f" {a}", f" {b}"], "gold": i % 2}
        for i, (a, b) in enumerate(zip(SOURCE_WORDS, TARGET_WORDS, strict=False))
    ]
    (folder / "task.jsonl").write_text("".join(json.dumps(item) + "\n" for item in task))
    make_text(folder / "valid.jsonl", TARGET_WORDS, documents=4, seed=5)
    values["evaluation"] |= {"prompts": ["le"], "tasks": [f"file:{folder / 'task.jsonl'}"]}
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


@contextmanager
def prepared(place: Path) -> Iterator[Path]:
    """Context with a new folder, always with the same path."""
    folder = place / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place / "prepared", folder)
    try:
        yield folder
    finally:
        if os.path.ismount(folder):
            subprocess.run(["umount", str(folder)], check=True)


def undisturbed(place: Path) -> Whole:
    """Make the run with which all others are compared. It runs twice: the first time to find its
    imports, which this process then imports for the commands of all trials."""
    prepare(place / "trial")
    shutil.copytree(place / "trial", place / "prepared")
    imported, counted = place / "imported", place / "changes"
    for count in (_write_imports(imported), _count_changes(counted)):
        with prepared(place) as folder:
            ended = Command(folder, count, "log").wait()
            if ended.code:
                raise SystemExit(f"the undisturbed run failed:\n{ended.said}")
            whole = Whole(results(folder), ended.seconds, counted.stat().st_size, du(folder))
        for name in imported.read_text(encoding="utf-8").splitlines():
            with suppress(Exception):  # not all of these modules can be imported directly
                importlib.import_module(name)
        gc.freeze()
    return whole


def _write_imports(file: Path) -> Callable[[], None]:
    """A function that makes a command write the names of all imported modules when it ends."""

    leave = os._exit

    def write_and_leave(code: int) -> None:
        file.write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
        leave(code)

    return lambda: setattr(os, "_exit", write_and_leave)


def _count_changes(file: Path) -> Callable[[], None]:
    """A function that installs a hook, which writes a byte to `file` for each change to the file
    system."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if is_change(event, arguments):
            os.write(handle, b".")

    handle = os.open(file, os.O_WRONLY | os.O_CREAT)
    return lambda: sys.addaudithook(hook)


def run_trials(fault: str, trials: int, seed: int, place: Path, whole: Whole) -> list[str]:
    """Disturb this number of runs. Prints a line for the fault, and returns (and prints) one for
    each failed trial."""
    disturb, disturbed, wrong = FAULTS[fault], Counter[str](), []
    start = time.monotonic()
    for number in range(trials):
        chance = random.Random(f"{fault} {seed} {number}")
        with prepared(place) as folder:
            at = number * whole.changes // trials if trials < whole.changes else number
            trial = Trial(folder, chance, whole, at % whole.changes)
            disturb(trial)
            last = trial.command().wait()
            if last.code:
                trial.wrong.append(f"then the command failed: {last.said[-300:]!r}")
            trial.wrong += differences(whole.results, results(folder))
        disturbed += trial.disturbed
        for problem in trial.wrong[:3]:
            wrong.append(problem)
            print(f"  {fault}, trial {number}: {problem}", flush=True)
    took = time.monotonic() - start
    where = ", ".join(f"{count} {name}" for name, count in sorted(disturbed.items()))
    print(f"{fault}: {trials} trials, {sum(disturbed.values())} faults ({where}),", end=" ")
    print(f"{len(wrong)} problems, {took:.0f} s", flush=True)
    return wrong


# ---------------------------------------------------------------- a comparison


COMPARE = (sys.executable, "-m", "neutral_residues.cli.app", "compare")


def comparison(kills: int, seed: int, place: Path) -> list[str]:
    """Kill one comparison this number of times, and compare its records with those of an
    undisturbed one. If it ends earlier, it is started again from the beginning."""
    folder, chance = place / "comparison", random.Random(f"comparison {seed}")
    prepare_comparison(folder)
    start = time.monotonic()
    whole, undisturbed_seconds = compared(folder), time.monotonic() - start
    wrong, killed, ends = list[str](), Counter[str](), 0
    while sum(killed.values()) < kills or not ends:
        shutil.rmtree(folder / "out")
        while sum(killed.values()) < kills:
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    [*COMPARE, str(folder / "compare.yaml")], stdout=log, stderr=subprocess.STDOUT
                )
            try:
                process.wait(chance.uniform(0, 0.4 * undisturbed_seconds))
                break
            except subprocess.TimeoutExpired:
                killed[_kill_some(process, folder, chance)] += 1
        wrong += differences(whole, compared(folder))
        ends += 1
    for problem in wrong:
        print(f"  comparison: {problem}", flush=True)
    where = ", ".join(f"{count} of {name}" for name, count in sorted(killed.items()))
    print(f"comparison: {ends} to the end, {sum(killed.values())} kills ({where}),", end=" ")
    print(f"{len(wrong)} problems", flush=True)
    return wrong


def _kill_some(process: subprocess.Popen[bytes], folder: Path, chance: random.Random) -> str:
    """Kill the comparison, some of its cells, or all of them; returns which. If only cells were
    killed, the comparison is then stopped."""
    cells, what = cells_of(folder), chance.choice(["the comparison", "its cells", "all"])
    if what != "the comparison":
        for pid in cells:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGTERM if what == "its cells" else signal.SIGKILL)
    process.wait()
    return what


def cells_of(folder: Path) -> list[int]:
    """Ids of the processes that run cells of the comparison in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = place.read_bytes().decode(errors="replace").split("\0")
            if "extend" in words and any(word.startswith(str(folder)) for word in words):
                found.append(int(place.parent.name))
    return found


def compared(folder: Path) -> dict[str, str]:
    """Run the comparison in this folder to its end; returns record -> digest."""
    ended = subprocess.run([*COMPARE, str(folder / "compare.yaml")], capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"the comparison failed:\n{ended.stdout}\n{ended.stderr}")
    out = folder / "out"
    return {str(path.relative_to(out)): digest(path) for path in out.rglob("record.json")}


def prepare_comparison(folder: Path) -> None:
    """Write a comparison file with two methods, two learning rates and two seeds."""
    prepare(folder)
    values = {
        "runs": [str(folder / "run.yaml")],
        "output": str(folder / "out"),
        "methods": ["neutral", "finetune"],
        "learning_rate_factors": [1, 2],
        "seeds": [0, 1],
        "jobs": 2,
    }
    (folder / "compare.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")


FAULTS: dict[str, Callable[[Trial], None]] = {
    "kill": kill,
    "operation": operation,
    "full": full,
    "read-only": read_only,
    "quota": quota,
    "two": two,
    "clock": clock,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [*FAULTS, comparison.__name__]
    parser.add_argument("--fault", action="append", choices=names, help="default: all")
    parser.add_argument("--trials", type=int, default=10, help="of each fault")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    asked, trials, seed = arguments.fault or names, arguments.trials, arguments.seed
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        if runs := [fault for fault in asked if fault in FAULTS]:
            whole = undisturbed(place)
            print(f"undisturbed: {whole.seconds:.1f} s, {whole.changes} changes of the file system")
            for fault in runs:
                wrong += run_trials(fault, trials, seed, place, whole)
        if comparison.__name__ in asked:
            wrong += comparison(trials, seed, place)
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
