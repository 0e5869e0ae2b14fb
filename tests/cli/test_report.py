"""`neutral report`: what it prints, and that bad input is one line."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from neutral_residues.cli import app as cli
from neutral_residues.cli.report import run_report
from neutral_residues.results.store import write_record
from synthetic import make_record


def test_verdict_and_page_are_printed(tmp_path: Path) -> None:
    write_record(tmp_path / "run" / "record.json", make_record())
    printed = io.StringIO()
    run_report([tmp_path / "run"], None, console=Console(file=printed, width=500))
    verdict, *_, page = printed.getvalue().splitlines()
    assert verdict.startswith("On fr, neutral lowers bits per byte")
    assert page == f"page: {tmp_path / 'run' / 'report' / 'index.html'}"


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["neutral", "report", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "no such file or folder" in error
    assert error.count("\n") == 1
