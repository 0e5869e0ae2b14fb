"""A small tier of `benchmarks/fuzz.py` with a fixed seed, and that its judge sees what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from paths import ROOT

pytestmark = pytest.mark.slow
SCRIPT = ROOT / "benchmarks" / "fuzz.py"


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_damaged_input_is_one_line(tmp_path: Path) -> None:
    here = tmp_path / "here"  # beside the cache of this test, where Matplotlib writes
    here.mkdir()
    done = run(str(SCRIPT), "--count", "12", "--seed", "0", folder=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 10  # one for each kind, and none for failures
    assert list(here.iterdir()) == []


MISBEHAVIOUR = """
import os, pickle, socket, subprocess, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import fuzz
from fuzz_cases import Case
from mutations import pickled_call

fuzz.SECONDS, fuzz.MEMORY_BYTES = 5, 2**28

def lines(code, *errors):
    print(*errors, sep="\\n", file=sys.stderr)
    raise SystemExit(code)

wrong = {{
    "traceback": lambda: {{}}["x"],
    "exit code 3": lambda: sys.exit(3),
    "exit code -9": lambda: os.kill(os.getpid(), 9),
    "2 lines of error": lambda: lines(2, "error: one", "error: two"),
    "1 lines of error": lambda: lines(2, "oh"),
    "a line of error that": lambda: lines(2, "error: \\x1b[2J"),
    "took over": lambda: time.sleep(99),
    "GiB of memory": lambda: b"x" * 2**30,
    "writes": lambda: Path("elsewhere").write_text(""),
    "(os.mkdir)": lambda: os.mkdir("folder"),
    "starts": lambda: subprocess.run(["true"]),
    "opens a connection": lambda: socket.create_connection(("127.0.0.1", 9)),
    "loads a pickle": lambda: pickle.loads(pickled_call("made")),
    "imports a module of": lambda: __import__("canary"),
}}
fine = {{
    "writes where it may": lambda: (Path("out").mkdir(), Path("out/a").write_text("")),
    "one line": lambda: lines(2, "error: x"),
}}
for expected, act in (wrong | fine).items():
    fuzz.app.main = act
    with tempfile.TemporaryDirectory() as name:
        outcome = fuzz.run(Path(name), Case((), ("out",)))
    found = "; ".join(outcome.problems(usual_bytes=2**29))
    print(expected, "->", found)
    assert expected in found if expected in wrong else not found, (expected, found)
"""


def test_the_judge_sees_what_must_not_happen(tmp_path: Path) -> None:
    (tmp_path / "canary.py").write_text("")
    program = MISBEHAVIOUR.format(benchmarks=str(SCRIPT.parent))
    done = run("-c", program, folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
