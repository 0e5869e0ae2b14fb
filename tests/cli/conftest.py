"""The command line in this process, and one finished run for all tests that only read it."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from command_line import Neutral
from neutral_residues.cli import app as cli
from neutral_residues.config.run import make_run
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress
from tiny_run import run_values, write_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def neutral(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Neutral:
    """Runs the command line in this process: exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["neutral", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.yaml and its finished run in run/; not to be changed."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    values = run_values(folder, steps=3, learning_rate=0.02)
    write_run(folder, values)
    extend(make_run(values), progress=RunProgress(quiet=True))
    return folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained / "run", tmp_path / "run"))
