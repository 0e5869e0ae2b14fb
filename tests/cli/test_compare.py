"""`neutral compare`: what it prints, its plan, its report, and what it refuses."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from command_line import Neutral, assert_one_line
from neutral_residues.cli.compare import CompareDisplay
from neutral_residues.compare.grid import expand
from tiny_comparison import comparison
from tiny_run import run_values, write_run


def test_a_terminal_shows_the_last_line_of_each_running_cell(tmp_path: Path) -> None:
    one, other = expand(comparison(tmp_path, seeds=[0, 1])).trained
    log = tmp_path / "log"
    log.write_text("step 1 of 9\nstep 2 of 9\n")
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=120)
    with CompareDisplay(console) as display:
        display.on_begin(2)
        display.on_cell_begin(one, log)
        display.on_cell_begin(other, log)
        display.progress.refresh()
        shown = printed.getvalue()
        display.on_cell_end(one, "no space left on the disk", 1.0)
    assert "step 2 of 9" in shown
    assert "step 1 of 9" not in shown
    assert f"{one.name}  failed: no space left on the disk" in printed.getvalue()
    assert "1/2" in printed.getvalue()


def test_elsewhere_a_cell_that_starts_names_its_log_at_once(tmp_path: Path) -> None:
    (cell,) = expand(comparison(tmp_path, seeds=[0])).trained
    printed = io.StringIO()
    with CompareDisplay(Console(file=printed, force_terminal=False, width=40)) as display:
        display.on_begin(1)
        display.on_cell_begin(cell, tmp_path / "log")
        assert printed.getvalue() == f"{cell.name}  starts, prints to {tmp_path / 'log'}\n"


@pytest.mark.slow
def test_a_comparison_and_its_report(tmp_path: Path, neutral: Neutral) -> None:
    write_run(tmp_path, run_values(tmp_path, steps=2), "tiny.yaml")
    values = {
        "runs": [str(tmp_path / "tiny.yaml")],
        "output": str(tmp_path / "out"),
        "methods": ["finetune"],
    }
    file = write_run(tmp_path, values, "compare.yaml")
    code, printed = neutral("compare", file, "--plan")
    assert code == 0, printed
    assert "1 cells, 0 done" in printed
    assert_one_line(neutral("report", tmp_path / "out"), "no such file or folder")
    code, printed = neutral("compare", file)
    assert code == 0, printed
    assert "1 cells done, 0 failed" in printed
    code, printed = neutral("report", tmp_path / "out")
    assert code == 0, printed
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    # What another text gives does not stand in one column with it, and half a record is none.
    record = tmp_path / "out" / "cells" / "tiny" / "finetune" / "lr0.006-p0.25-s0" / "record.json"
    other = json.loads(record.read_text())
    del other["digest"]  # as who edits a record does
    other["config"]["seed"] = 1
    other["sets"]["fr"]["key"] = "another text"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert_one_line(
        neutral("report", record, tmp_path / "other.json"), "do not compare", "report them apart"
    )
    (tmp_path / "half.json").write_text(record.read_text()[:1000])
    assert_one_line(neutral("report", tmp_path / "half.json"), "not whole JSON")
    (tmp_path / "newer.json").write_text(json.dumps(other | {"version": 99}))
    assert_one_line(
        neutral("report", tmp_path / "newer.json"), "version; got 99; allowed: 1", "read it with"
    )


def test_bad_comparisons(tmp_path: Path, neutral: Neutral) -> None:
    run = write_run(tmp_path, run_values(tmp_path), "tiny.yaml")
    values = {"runs": [str(run)], "output": str(tmp_path / "out"), "methods": ["neutral"]}
    file = write_run(tmp_path, values, "compare.yaml")
    assert_one_line(neutral("compare", tmp_path / "none.yaml"), "no such file")
    assert_one_line(
        neutral("compare", file, "methods=[neutrall]"),
        "unknown method neutrall",
        "did you mean 'neutral'",
    )
    assert_one_line(
        neutral("compare", file, "metods=[neutral]"), "unknown key metods", "did you mean 'methods'"
    )
    assert_one_line(neutral("compare", file, "set.training.steps=x"), "training.steps")
    assert_one_line(
        neutral("compare", file, "set.model=/nowhere"), "cannot load the model /nowhere"
    )
    assert not (tmp_path / "out").exists()
    # A budget that nothing meets is the failure of its cell, not of the comparison.
    code, printed = neutral("compare", file, 'methods=["lora"]')
    assert code == 1
    assert "0 cells done, 1 failed" in printed
    assert "the nearest is 0.20429 (rank 7)" in printed
