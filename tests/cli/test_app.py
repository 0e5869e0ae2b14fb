"""The command line as a whole: instant help, and run files that cannot be read."""

import os
import subprocess
import sys
from pathlib import Path

from command_line import Neutral, assert_one_line
from tiny_run import run_values, write_run


def test_help_is_instant() -> None:
    seconds = []
    for _ in range(3):
        before = os.times()
        command = [sys.executable, "-m", "neutral_residues.cli.app", "--help"]
        subprocess.run(command, check=True, capture_output=True)
        after = os.times()
        user = after.children_user - before.children_user
        seconds.append(user + after.children_system - before.children_system)
    # Processor time, not wall time: other work on the machine must not fail this.
    assert min(seconds) < 0.5


def test_the_light_path_never_imports_torch() -> None:
    code = "import sys; sys.argv = ['neutral', '--help']\n"
    code += (
        "from neutral_residues.cli.app import main\ntry: main()\nexcept SystemExit: pass\nassert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_kill_stops_it_in_order_where_ctrl_c_is_ignored() -> None:
    code = "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)  # as below nohup\n"
    code += "from neutral_residues.cli import app\n"
    code += "app.app = lambda: os.kill(os.getpid(), signal.SIGTERM)\napp.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "stopped\n")


def test_run_file_itself(tmp_path: Path, neutral: Neutral) -> None:
    assert_one_line(neutral("extend", tmp_path / "none.yaml"), "no such file")
    (tmp_path / "bad.yaml").write_text("model: [1,\n")
    assert_one_line(neutral("extend", tmp_path / "bad.yaml"), "not YAML", "line")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert_one_line(neutral("extend", tmp_path / "list.yaml"), "mapping")
    (tmp_path / "latin.yaml").write_bytes("model: déjà\n".encode("latin-1"))
    assert_one_line(neutral("extend", tmp_path / "latin.yaml"), "UTF-8")
    run = write_run(tmp_path, run_values(tmp_path))
    assert_one_line(neutral("extend", run, "training.steps"), "key=value")
    assert_one_line(neutral("extend", run, "training.steps=x"), "training.steps")
