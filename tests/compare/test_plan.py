"""What a comparison would do: counted cells, and times from finished cells or a trial run."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from neutral_residues.cli.compare import print_plan
from neutral_residues.compare.grid import expand
from neutral_residues.errors import UserError
from neutral_residues.evaluation.self_replay import SelfReplay
from neutral_residues.results.record import Cost, Record
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import provenance, write_record
from neutral_residues.training.setup import Setup
from neutral_residues.training.trial_run import TrialResult
from tiny_comparison import comparison

TRIAL = "neutral_residues.compare.plan.run_trial"


def test_cells_weights_and_disk_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {"method": "lora", "set": {"budget": 0.21}}
    config = comparison(
        tmp_path,
        methods=["finetune", "neutral", lora],
        learning_rate_factors=[1, 2],
        seeds=[0, 1, 2],
        tune=True,
    )
    trials: list[dict[str, Any]] = []

    def trial(run: Any, **settings: Any) -> TrialResult:
        trials.append(settings)
        return TrialResult(
            cost=Cost(step_seconds=2.0),
            curve=[],
            backbone_bits={},
            loading_seconds=0.0,
            measuring_seconds=0.0,
            measured_tokens=1,
        )

    monkeypatch.setattr(TRIAL, trial)
    printed = io.StringIO()
    found = print_plan(config, console=Console(file=printed, width=80))
    assert not (tmp_path / "out").exists()
    by_method = {plan.cell.config.method: plan for plan in found.cells}
    finetune = by_method["finetune"]
    assert finetune.trained_weights == 37280
    assert finetune.disk_bytes == 4 * 37280
    assert by_method["neutral"].budget == pytest.approx(0.2, rel=0.02)
    assert "budget cannot be met" in (by_method["lora"].problem or "")
    tokens = 4 * 4 * 2 * 32
    evaluated = sum(s.num_tokens for s in Setup.of(finetune.cell.config).data.evaluate)
    # Half strides, backbone and extended model.
    measuring = evaluated * 2 * 2 * (2 * 37280)
    assert finetune.operations == pytest.approx(tokens * 6 * 37280 + measuring)
    # Four steps of two seconds in the cell that was tried; as its operations in any other.
    assert trials == [{"num_steps": 8, "threads": max(1, torch.get_num_threads() // 2)}]
    assert finetune.seconds == pytest.approx(4 * 2.0)
    neutral = by_method["neutral"]
    assert neutral.seconds == pytest.approx(8.0 * neutral.operations / finetune.operations)
    text = printed.getvalue()
    # Three methods: the first seed at two rates, and two more seeds at the better one.
    for part in ("12 cells at most", "0 done, 2 at a time", "cannot run", "disk: about"):
        assert part in text, text
    for name in (part for plan in found.cells for part in plan.cell.group.split("/")):
        assert name in text, text  # on 80 columns
    assert "time left: about" in text


def test_a_trial_that_fails_leaves_the_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any, **settings: Any) -> TrialResult:
        raise UserError("the trial run failed")

    monkeypatch.setattr(TRIAL, fail)
    printed = io.StringIO()
    found = print_plan(comparison(tmp_path), console=Console(file=printed, width=160))
    assert found.seconds_left is None
    assert found.cells[0].trained_weights
    assert "time left: unknown; the trial run failed" in printed.getvalue()


def test_times_of_finished_cells_are_used(tmp_path: Path) -> None:
    config = comparison(tmp_path)
    (cell,) = expand(config).trained
    record = Record(
        kind="extend",
        method="finetune",
        cost=Cost(wall_seconds=12.5),
        provenance=provenance(),
        config=cell.config.model_dump(mode="json"),
    )
    write_record(RunFolder(cell.config.output).record, record)
    (plan,) = print_plan(config, console=Console(file=io.StringIO())).cells
    assert plan.done
    assert plan.seconds == pytest.approx(12.5)


def test_a_plan_waits_for_no_text_of_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise UserError("nothing is to be run")

    monkeypatch.setattr(TRIAL, fail)
    monkeypatch.setattr(SelfReplay, "write", fail)
    config = comparison(tmp_path, methods=["neutral"])
    target = expand(config).trained[0].config.data.train[0].model_dump(mode="json")
    own = {"name": "own", "role": "source", "path": "self"}
    settings = {"data.train": [target, own], "data.self_replay.document_tokens": 40}
    config = config.model_copy(update={"set": settings})
    (plan,) = print_plan(config, console=Console(file=io.StringIO())).cells
    assert plan.problem is None
    assert plan.operations > 0
