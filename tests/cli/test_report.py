"""`neutral report`: what it prints, and that bad input is one line."""

from pathlib import Path

import pytest

from command_line import Neutral, assert_one_line
from neutral_residues.results.store import write_record
from synthetic import make_record


def test_verdict_and_page_are_printed(
    tmp_path: Path, neutral: Neutral, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(tmp_path / "run" / "record.json", make_record())
    monkeypatch.setenv("COLUMNS", "500")
    code, printed = neutral("report", tmp_path / "run")
    assert code == 0, printed
    verdict, *_, page = printed.splitlines()
    assert verdict.startswith("On fr, neutral lowers bits per byte")
    assert page == f"page: {tmp_path / 'run' / 'report' / 'index.html'}"


def test_bad_input_is_one_line(tmp_path: Path, neutral: Neutral) -> None:
    assert_one_line(neutral("report", tmp_path / "nothing"), "no such file or folder")
