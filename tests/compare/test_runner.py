"""A comparison from file to records: side by side, failing, interrupted, resumed."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from neutral_residues.cli.compare import print_outcome
from neutral_residues.compare.grid import expand
from neutral_residues.compare.runner import compare
from neutral_residues.config.base import checked
from neutral_residues.config.comparison import CompareConfig, load_comparison
from neutral_residues.errors import UserError
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import find, read_failure
from tiny_run import TARGET_WORDS, make_text, run_values, write_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def comparison(folder: Path, steps: int = 4, **settings: Any) -> CompareConfig:
    values = run_values(folder, steps=steps)
    make_text(folder / "valid.jsonl", TARGET_WORDS, documents=4, seed=5)
    values["data"]["validate_on"] = [
        {"name": "fr-valid", "role": "target", "path": str(folder / "valid.jsonl")}
    ]
    run = write_run(folder, values, "tiny.yaml")
    common = {"runs": [str(run)], "output": str(folder / "out"), "jobs": 2}
    return checked(CompareConfig, common | {"methods": ["finetune"]} | settings)


def test_cells_are_tuned_averaged_and_never_done_twice(tmp_path: Path) -> None:
    entry = {"method": "wise-ft", "set": {"averaging.share": 0.5}}
    lora = {"method": "lora", "set": {"budget": 0.21}}  # no whole rank meets it
    config = comparison(
        tmp_path,
        methods=["finetune", entry, lora],
        learning_rate_factors=[0.01, 1],
        seeds=[0, 1],
        tune=True,
    )
    printed = io.StringIO()
    outcome = compare(config, console=Console(file=printed, width=200))
    # The first seed at both rates, the second at the better one, an average of each of those; LoRA
    # failed twice.
    assert sorted(outcome.records) == [
        "tiny/finetune/lr0.006-p0.25-s0",
        "tiny/finetune/lr0.006-p0.25-s1",
        "tiny/finetune/lr6e-05-p0.25-s0",
        "tiny/wise-ft/share0.5-lr0.006-p0.25-s0",
        "tiny/wise-ft/share0.5-lr0.006-p0.25-s1",
    ]
    assert len(outcome.failures) == 2
    for name, reason in outcome.failures.items():
        failure = read_failure(tmp_path / "out" / "cells" / name / "failure.json")
        assert (failure.label, failure.reason) == ("lora", reason)
        assert "budget cannot be met within 2 % by a whole rank; got 0.21; the nearest" in reason
    backbone, half, whole = (
        find(outcome.records[name], "bits_per_byte", set="fr", of=of).value
        for name, of in (
            ("tiny/finetune/lr0.006-p0.25-s0", "backbone"),
            ("tiny/wise-ft/share0.5-lr0.006-p0.25-s0", "extended"),
            ("tiny/finetune/lr0.006-p0.25-s0", "extended"),
        )
    )
    assert whole < half < backbone
    assert "failed: budget cannot be met" in printed.getvalue()

    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("record.json")}
    again = compare(
        config.model_copy(update={"keep_weights": False}), console=Console(file=io.StringIO())
    )
    assert again.records == outcome.records
    assert {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("record.json")
    } == times
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    summary = io.StringIO()
    print_outcome(again, config, console=Console(file=summary, width=200))
    assert "5 cells done, 2 failed" in summary.getvalue()


def test_a_cell_equals_the_run_of_its_own(tmp_path: Path) -> None:
    """Whatever runs beside it: each process has its own memory, seed and threads."""
    from neutral_residues.run import extend

    config = comparison(tmp_path, methods=["neutral"], seeds=[0, 1])
    outcome = compare(config, console=Console(file=io.StringIO()))
    cell = expand(config).trained[1]
    alone = extend(cell.config.model_copy(update={"output": tmp_path / "alone"}))
    assert alone.metrics == outcome.records[cell.name].metrics
    assert alone.gates == outcome.records[cell.name].gates


def test_stopped_and_resumed(tmp_path: Path) -> None:
    config = comparison(tmp_path, steps=400)
    file = tmp_path / "compare.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_comparison(file) == config
    command = [
        sys.executable,
        "-m",
        "neutral_residues.cli.app",
        "compare",
        str(file),
        "set.training.save_every=5",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    cell = tmp_path / "out" / "cells" / "tiny" / "finetune" / "lr0.006-p0.25-s0"
    while not list(cell.glob("checkpoints/checkpoint-*/complete.json")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    # Two processes must not run one comparison.
    with pytest.raises(UserError, match="another process is running the comparison"):
        compare(config, console=Console(file=io.StringIO()))
    process.send_signal(signal.SIGINT)
    printed = process.communicate()[0]
    assert process.returncode == 130, printed
    assert "writes its checkpoint" in printed
    assert not RunFolder(cell).is_finished
    assert not RunFolder(cell).failure.exists()
    # The process is gone and left the step it was at.
    sealed = max(
        int(p.parent.name.rsplit("-", 1)[1])
        for p in cell.glob("checkpoints/checkpoint-*/complete.json")
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resuming from {cell}/checkpoints/checkpoint-{sealed}" in "".join(
        path.read_text() for path in (tmp_path / "out" / "logs").rglob("*.log")
    )


def test_a_killed_cell_says_so_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neutral_residues.compare import runner as module

    class Killed(subprocess.Popen[bytes]):
        def __init__(self, command: list[str], **options: Any) -> None:
            first = "s0" in command[-1]
            script = [
                sys.executable,
                "-c",
                "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            ]
            super().__init__(script if first else command, **options)

    monkeypatch.setattr(module.subprocess, "Popen", Killed)
    outcome = compare(comparison(tmp_path, seeds=[0, 1]), console=Console(file=io.StringIO()))
    assert outcome.failures == {
        "tiny/finetune/lr0.006-p0.25-s0": "killed by SIGKILL (out of memory?)"
    }
    assert list(outcome.records) == ["tiny/finetune/lr0.006-p0.25-s1"]


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    config = comparison(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"output folder .* is not empty; got thesis\.tex"):
        compare(config)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_cell_with_other_settings_is_a_failure_not_a_mixture(tmp_path: Path) -> None:
    compare(comparison(tmp_path), console=Console(file=io.StringIO()))
    outcome = compare(comparison(tmp_path, steps=6), console=Console(file=io.StringIO()))
    (reason,) = outcome.failures.values()
    assert "holds another run: training.steps was 4" in reason
