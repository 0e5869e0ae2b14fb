"""Fuzz tests of the command line with damaged and hostile input.

    python benchmarks/fuzz.py [--kind adapters ...] [--count 500] [--seed 0]

Valid files are damaged at random (`mutations.py`, `fuzz_cases.py`) and read by `neutral`, each time
in a process that is forked from this one, so that it starts at once, and can crash, hang or run out
of memory. A case fails if its process

- has another exit code than 0 or 2, prints a traceback, or an error that is not exactly one line;
- takes more than `SECONDS`, or more memory than the same command on valid files by `MEMORY_BYTES`;
- writes outside the given folders, opens a connection, starts a program, loads a pickle, or imports
  a module from the working folder;
- loads a damaged extension and computes other logits than the undamaged one.

Every failure is printed with the seed that reproduces it (`--seed SEED --count 1 --keep FOLDER`).
"""

import argparse
import contextlib
import faulthandler
import importlib
import io
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "200"

import torch

from fuzz_cases import KINDS, PROMPT, Case, Materials
from neutral_residues.cli import app
from neutral_residues.compare import plan
from neutral_residues.errors import UserError

SECONDS = 60
MEMORY_BYTES = 2**30
LONGEST_LINE = 2000
ALLOWED_PROGRAMS = ("git",)
WRITES = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "shutil.rmtree", "shutil.copyfile", "shutil.move",
}  # fmt: skip
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile"}
CONNECTIONS = {"socket.connect", "socket.getaddrinfo", "socket.bind"}


@dataclass
class Outcome:
    """The outcome of one process."""

    code: int  # exit code; negative if a signal ended it
    printed: str
    errors: str
    seconds: float
    peak_bytes: int
    done: list[str] = field(default_factory=list)  # forbidden actions

    def problems(self, *, usual_bytes: int) -> Iterator[str]:
        """Yield everything that is wrong with the outcome."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        if self.code not in (0, 2):
            yield f"exit code {self.code}: {lines[-1][:300] if lines else ''}"
        if "Traceback" in self.errors:
            yield "traceback"
        if self.code == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")):
            yield f"{len(lines)} lines of error: {' | '.join(lines)[:300]}"
        if any(len(line) > LONGEST_LINE or not line.isprintable() for line in lines):
            yield "a line of error that a terminal would not show as one"
        if self.seconds > SECONDS:
            yield f"took over {SECONDS} s"
        if self.peak_bytes > usual_bytes + MEMORY_BYTES:
            yield f"{self.peak_bytes / 2**30:.1f} GiB of memory"
        yield from self.done


# ---- the process of one case ----


class _Watch:
    """Audit hook of the interpreter that prevents forbidden actions, and writes them to `notes`."""

    def __init__(self, folder: Path, case: Case, notes: int) -> None:
        self.folder, self.notes, self.busy = folder, notes, False
        named = [Path(it) for it in ("cache", "tmp", *case.writes) if "\0" not in it]
        # Folders are written under a temporary name, and then renamed.
        named += [it.with_name(f".{it.name}.partial") for it in named if it.name]
        self.allowed = tuple(os.path.realpath(folder / it) for it in named)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.busy:
            return
        self.busy = True
        try:
            found = self._forbidden(event, arguments)
            if found is not None:
                os.write(self.notes, f"{found}\n".encode("utf-8", "replace"))
                raise PermissionError(13, "Permission denied")
        finally:
            self.busy = False

    def _forbidden(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event in WRITES or (event == "open" and _is_for_writing(*arguments)):
            path = arguments[1] if event in ("os.rename", "shutil.move") else arguments[0]
            if event in ("os.remove", "os.rmdir") and arguments[1] != -1:
                # A path relative to an open folder, as in `shutil.rmtree`.
                path = Path(os.readlink(f"/proc/self/fd/{arguments[1]}"), os.fsdecode(path))
            if isinstance(path, str | bytes | os.PathLike) and not self._may_write(path):
                return f"writes {os.fsdecode(path)!r} ({event})"
        if event in PROGRAMS and Path(str(arguments[0])).name not in ALLOWED_PROGRAMS:
            return f"starts {arguments[0]!r}"
        if event in CONNECTIONS:
            return f"opens a connection ({event})"
        if event == "pickle.find_class":
            return f"loads a pickle: {arguments[0]}.{arguments[1]}"
        if event == "import" and arguments[0] == "canary":
            return "imports a module of the working folder"
        return None

    def _may_write(self, path: Any) -> bool:
        real = os.path.realpath(os.fsdecode(path))
        return real == "/dev/null" or any(
            real == it or real.startswith(it.rstrip("/") + "/") for it in self.allowed
        )


def _is_for_writing(path: Any, mode: str | None, flags: int) -> bool:
    if mode is not None:
        return any(letter in mode for letter in "wax+")
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _act(folder: Path, case: Case, notes: int) -> int:
    """Run the command in this process, which was forked; returns its exit code."""
    os.chdir(folder)
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    tempfile.tempdir = None
    (folder / "tmp").mkdir(exist_ok=True)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    faulthandler.dump_traceback_later(SECONDS - 1)  # shows where it hangs before it is killed
    sys.addaudithook(_Watch(folder, case, notes))
    code = _command(case)
    if code == 0 and case.original is not None:
        expected, found = _logits(case.original), _logits(folder / "extension")
        if not torch.equal(expected, found):
            os.write(notes, b"damaged, and loaded with other numbers\n")
    return code


def _command(case: Case) -> int:
    sys.argv = ["neutral", *case.arguments]
    try:
        app.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _logits(extension: Path) -> torch.Tensor:
    from neutral_residues.evaluation.saved import load_saved

    saved = load_saved(extension)
    tokens = saved.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return saved.model(input_ids=tokens).logits


def run(folder: Path, case: Case) -> Outcome:
    """Run one case in a forked process, and wait for it."""
    files = [folder / ".printed", folder / ".errors", folder / ".notes"]
    started = time.monotonic()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            handles = [os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for file in files]
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(handles[0], 1)
            os.dup2(handles[1], 2)
            code = _act(folder, case, handles[2])
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    pidfd = os.pidfd_open(pid)
    if not select.select([pidfd], [], [], SECONDS + 1)[0]:
        os.kill(pid, signal.SIGKILL)
    os.close(pidfd)
    _, status, usage = os.wait4(pid, 0)
    printed, errors, notes = (file.read_text("utf-8", "replace") for file in files)
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        printed=printed,
        errors=errors,
        seconds=time.monotonic() - started,
        peak_bytes=usage.ru_maxrss * 1024,
        done=notes.splitlines(),
    )


# ---- all cases ----


@dataclass
class Tally:
    """Counts and failures of the cases of one kind."""

    codes: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    usual_bytes: int = 0

    @property
    def row(self) -> str:
        fine = f"{self.codes.total()} cases: {self.codes[2]} refused, {self.codes[0]} accepted"
        cost = f"{self.seconds:.0f} s, {self.peak_bytes / 2**30:.2f} GiB at most"
        return f"{fine}, {len(self.failures)} failed; {cost}"


def fuzz(
    kind: str, count: int, seed: int, materials: Materials, keep: Path | None, tally: Tally
) -> None:
    """Run `count` cases of a kind, with seeds from `seed` on. Failures are printed, and added to
    `tally`."""
    for number in range(-1, count):
        with contextlib.ExitStack() as stack:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="fuzz-"))
            folder = keep if keep is not None and number >= 0 else Path(name)
            folder.mkdir(exist_ok=True)
            rng = random.Random(f"{kind} {seed + number}")
            case = KINDS[kind].prepare(rng, folder, materials)
            if number >= 0:
                case = KINDS[kind].damage(rng, folder, case)
            outcome = run(folder, case)
        if number < 0:  # the command on valid files
            if outcome.code != 0 or outcome.done:
                raise SystemExit(f"{kind}: good files fail: {outcome}")
            tally.usual_bytes = outcome.peak_bytes
            continue
        tally.codes[outcome.code] += 1
        tally.seconds += outcome.seconds
        tally.peak_bytes = max(tally.peak_bytes, outcome.peak_bytes)
        if found := list(outcome.problems(usual_bytes=tally.usual_bytes)):
            tally.failures.append(f"{kind} --seed {seed + number}: {'; '.join(found)}")
            print(f"  {tally.failures[-1]}", flush=True)


def _prepare(materials: Materials, kinds: list[str]) -> None:
    """Make the valid files, and import all modules that the commands need. To find these, the
    commands run once in another process, because a process in which PyTorch has computed cannot be
    forked safely."""
    imported = materials.folder / "imported"
    pid = os.fork()
    if pid == 0:
        try:
            for kind in kinds:
                _run_once(kind, materials)
            imported.write_text("\n".join(sys.modules))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for name in imported.read_text().splitlines():
        with contextlib.suppress(Exception):  # some modules are created and cannot be imported
            importlib.import_module(name)


def _run_once(kind: str, materials: Materials) -> None:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder, here = Path(name), os.getcwd()
        case = KINDS[kind].prepare(random.Random(0), folder, materials)
        materials.make()
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                _command(case)
        finally:
            os.chdir(here)


def _no_trial(*args: Any, **kwargs: Any) -> Any:
    raise UserError("no trial run while fuzzing: it is a process of its own")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--count", type=int, default=100, help="cases of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--keep", type=Path, help="folder for the files of one case")
    arguments = parser.parse_args()
    if arguments.keep is not None and (arguments.count, len(arguments.kind)) != (1, 1):
        parser.error("--keep goes with one --kind and --count 1")
    sys.dont_write_bytecode = True
    vars(plan)["run_trial"] = _no_trial
    space = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, space))  # protects the machine
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that results are printed
    tallies = {kind: Tally() for kind in arguments.kind}
    with (
        contextlib.suppress(KeyboardInterrupt),
        tempfile.TemporaryDirectory(prefix="fuzz-good-") as name,
    ):
        materials = Materials(Path(name))
        _prepare(materials, arguments.kind)
        for kind, tally in tallies.items():
            fuzz(kind, arguments.count, arguments.seed, materials, arguments.keep, tally)
    for kind, tally in tallies.items():
        print(f"{kind:13} {tally.row}")
    is_done = all(tally.codes.total() == arguments.count for tally in tallies.values())
    raise SystemExit(1 if not is_done or any(tally.failures for tally in tallies.values()) else 0)


if __name__ == "__main__":
    main()
