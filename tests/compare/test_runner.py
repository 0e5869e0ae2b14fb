"""A comparison from file to records: several at a time, failing, interrupted, resumed.

Where only the scheduler is tested, a small script runs instead of `neutral extend`.
"""

import io
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import filelock
import pytest
import torch
from rich.console import Console

from neutral_residues.cli.compare import CompareDisplay, print_outcome
from neutral_residues.compare import runner
from neutral_residues.compare.grid import expand
from neutral_residues.compare.runner import compare
from neutral_residues.errors import UserError
from neutral_residues.results.record import Record
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import provenance, read_failure
from neutral_residues.run import extend
from tiny_comparison import comparison

# Finishes a run at once, the better the higher its learning rate. Or does what a file of the name
# of its label, beside it, says.
SCRIPT = """
import json, os, shutil, signal, sys, time
from pathlib import Path
import yaml

here, plan = Path(__file__).parent, Path(sys.argv[1])
run = yaml.safe_load(plan.read_text())
output = Path(run["output"])
output.mkdir(parents=True, exist_ok=True)
shutil.copy(plan, output / "run.yaml")
shown = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
started = {"name": plan.stem, **{name: os.environ.get(name) for name in shown}}
with (here / "started").open("a") as file:
    file.write(json.dumps(started) + chr(10))
special = here / (run["label"] or run["method"])
if special.exists():
    exec(special.read_text())
record = json.loads((here / "record").read_text())
record["curve"] = [{"step": 1, "bits_per_byte/fr-valid": 1 - run["training"]["learning_rate"]}]
(output / "extension").mkdir(exist_ok=True)
(output / "record.json").write_text(json.dumps(record))
"""
WRITES_A_CHECKPOINT = """
def checkpoint(*_):
    (output / "checkpoint").write_text("whole")
    sys.exit(130)
signal.signal(signal.SIGTERM, checkpoint)
(output / "ready").touch()
time.sleep(60)
"""
IGNORES_CTRL_C = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(output / "ready").touch()
time.sleep(60)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the script that runs the cells."""
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "extend.py").write_text(SCRIPT)
    common = {"role": "target", "key": "k", "num_bytes": 1, "num_tokens": 1, "num_documents": 1}
    record = Record(
        kind="extend",
        method="finetune",
        validation_sets={"fr-valid": common},
        provenance=provenance(),
    )
    (folder / "record").write_text(json.dumps(record.model_dump(mode="json")))
    monkeypatch.setattr(runner, "PROGRAM", (sys.executable, str(folder / "extend.py")))
    return folder


def started(script: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (script / "started").read_text().splitlines()]


def ctrl_c_after(path: Path, *, times: int = 1) -> None:
    """Ctrl-C reaches this process once that file is there."""

    def press() -> None:
        for _ in range(1200):
            if path.exists():
                break
            time.sleep(0.05)
        for _ in range(times if path.exists() else 0):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    threading.Thread(target=press, daemon=True).start()


def test_cells_are_tuned_averaged_and_never_done_twice(tmp_path: Path, script: Path) -> None:
    (script / "lora").write_text("print('error: no rank fits'); sys.exit(2)")
    config = comparison(
        tmp_path,
        methods=["finetune", {"method": "wise-ft", "set": {"scaling.share": 0.5}}, "lora"],
        learning_rate_factors=[0.01, 1],
        seeds=[0, 1],
        tune=True,
    )
    printed = io.StringIO()
    outcome = compare(config, callback=CompareDisplay(Console(file=printed, width=200)))
    # The first seed at both rates, the second at the better one, an average of each of those; LoRA
    # failed twice.
    assert sorted(outcome.records) == [
        "tiny/finetune/lr0.006-p0.25-s0",
        "tiny/finetune/lr0.006-p0.25-s1",
        "tiny/finetune/lr6e-05-p0.25-s0",
        "tiny/wise-ft/share0.5-lr0.006-p0.25-s0",
        "tiny/wise-ft/share0.5-lr0.006-p0.25-s1",
    ]
    assert list(outcome.failures.values()) == ["no rank fits"] * 2
    for name in outcome.failures:
        failure = read_failure(tmp_path / "out" / "cells" / name / "failure.json")
        assert (failure.label, failure.reason) == ("lora", "no rank fits")
    assert "failed: no rank fits" in printed.getvalue()
    assert len(started(script)) == 7
    threads = str(max(1, torch.get_num_threads() // 2))
    assert {cell["OMP_NUM_THREADS"] for cell in started(script)} == {threads}

    (script / "lora").unlink()
    again = compare(config.model_copy(update={"keep_weights": False}))
    assert again.records.items() > outcome.records.items()
    assert again.failures == {}
    # LoRA's two, and its second seed at the better rate; no failure is left behind.
    assert [cell["name"].split("-")[0] for cell in started(script)[7:]] == ["b0.2"] * 3
    assert not list((tmp_path / "out").rglob("failure.json"))
    assert not list((tmp_path / "out").rglob("extension"))
    summary = io.StringIO()
    print_outcome(again, config, console=Console(file=summary, width=200))
    assert "8 cells done, 0 failed" in summary.getvalue()


def test_cells_run_side_by_side_each_on_a_gpu_of_its_own(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    # Each of the first two ends only when the other one has started.
    both = "while len((here / 'started').read_text().splitlines()) < 2: time.sleep(0.05)"
    (script / "finetune").write_text(both)
    outcome = compare(comparison(tmp_path, jobs=None, seeds=[0, 1, 2, 3]))
    assert len(outcome.records) == 4
    gpus = [cell["CUDA_VISIBLE_DEVICES"] for cell in started(script)]
    assert sorted(gpus[:2]) == ["3", "5"]
    assert set(gpus) == {"3", "5"}


def test_ctrl_c_waits_for_the_checkpoints_and_the_next_call_goes_on(
    tmp_path: Path, script: Path
) -> None:
    (script / "finetune").write_text(WRITES_A_CHECKPOINT)
    config = comparison(tmp_path, jobs=1, seeds=[0, 1])
    cell = expand(config).trained[0].config.output
    ctrl_c_after(cell / "ready")
    printed = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        compare(config, callback=CompareDisplay(Console(file=printed, width=200)))
    assert "every running cell writes its checkpoint" in printed.getvalue()
    assert (cell / "checkpoint").read_text() == "whole"
    assert not RunFolder(cell).failure.exists()
    assert len(started(script)) == 1, "no cell is started any more"
    (script / "finetune").unlink()
    assert len(compare(config).records) == 2


def test_a_second_ctrl_c_kills(tmp_path: Path, script: Path) -> None:
    (script / "finetune").write_text(IGNORES_CTRL_C)
    config = comparison(tmp_path)
    start = time.monotonic()
    ctrl_c_after(expand(config).trained[0].config.output / "ready", times=2)
    with pytest.raises(KeyboardInterrupt):
        compare(config)
    assert time.monotonic() - start < 30


def test_a_killed_cell_says_so_and_the_rest_goes_on(tmp_path: Path, script: Path) -> None:
    (script / "finetune").write_text("run['seed'] == 0 and os.kill(os.getpid(), signal.SIGKILL)")
    outcome = compare(comparison(tmp_path, seeds=[0, 1]))
    assert outcome.failures == {
        "tiny/finetune/lr0.006-p0.25-s0": "killed by SIGKILL (out of memory?)"
    }
    assert list(outcome.records) == ["tiny/finetune/lr0.006-p0.25-s1"]


def test_a_broken_disk_stops_the_comparison(
    tmp_path: Path, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of ours in the thread of a cell is raised, and no process is left behind."""
    (script / "finetune").write_text(IGNORES_CTRL_C.replace("SIG_IGN", "SIG_DFL"))
    config = comparison(tmp_path, seeds=[0, 1])
    write = runner.write_text

    def full(path: Path, text: str) -> None:
        if path.name.endswith("s1.yaml"):
            while not (expand(config).trained[0].config.output / "ready").exists():
                time.sleep(0.05)
            raise UserError("no space left")
        write(path, text)

    monkeypatch.setattr(runner, "write_text", full)
    start = time.monotonic()
    with pytest.raises(UserError, match="no space left"):
        compare(config)
    assert time.monotonic() - start < 30


def test_folders_of_others_are_left_alone(tmp_path: Path, script: Path) -> None:
    config = comparison(tmp_path)
    (tmp_path / "out").mkdir()
    with (
        filelock.FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(UserError, match="another process is running the comparison"),
    ):
        compare(config)
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"output folder .* is not empty; got thesis\.tex"):
        compare(config)
    assert not (script / "started").exists()


def test_a_cell_with_other_settings_is_a_failure_not_a_mixture(
    tmp_path: Path, script: Path
) -> None:
    compare(comparison(tmp_path))
    (reason,) = compare(comparison(tmp_path, steps=6)).failures.values()
    assert "holds another run: training.steps was 4" in reason


@pytest.mark.slow
def test_a_real_cell_stopped_and_resumed_equals_a_run_of_its_own(tmp_path: Path) -> None:
    settings = {"training.save_every": 5, "training.evaluate_every": 40}
    config = comparison(tmp_path, methods=["neutral"], steps=40, set=settings)
    (cell,) = expand(config).trained
    ctrl_c_after(cell.config.output / "checkpoints" / "checkpoint-5" / "SHA256SUMS")
    with pytest.raises(KeyboardInterrupt):
        compare(config)
    assert not RunFolder(cell.config.output).is_finished
    outcome = compare(config)
    logs = (tmp_path / "out" / "logs").rglob("*.log")
    assert "resuming from" in "".join(path.read_text() for path in logs)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    try:
        alone = extend(cell.config.model_copy(update={"output": tmp_path / "alone"}))
    finally:
        torch.set_num_threads(before)
    assert alone.sets == outcome.records[cell.name].sets
    assert alone.gates == outcome.records[cell.name].gates
