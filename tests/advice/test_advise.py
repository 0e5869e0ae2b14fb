"""Advice as a person meets it: nothing is written but what is asked for, and the run starts as if
nobody had asked."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from neutral_residues.cli.advise import advise_run
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from tiny_run import run_values, vocabulary_values


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def printed(values: dict[str, Any], **settings: Any) -> tuple[Any, str]:
    out = io.StringIO()
    advice = advise_run(make_run(values), console=Console(file=out, width=300), **settings)
    return advice, out.getvalue()


def test_everything_in_one_go(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=40, learning_rate=0.01, save_every=3)
    values["residues"] = {"local_loss_weight": 0.005}  # a random block puts out next to nothing
    advice, text = printed(values, trial_steps=8, output=tmp_path / "advice.json")
    assert json.loads((tmp_path / "advice.json").read_text())["trial"]["steps"] == 8
    assert not (tmp_path / "run").exists()
    assert advice.trial is not None
    assert [step for step, _ in advice.trial.target_bits] == [0, 4, 8]
    start, reached = advice.trial.target_bits[0][1], advice.trial.target_bits[-1][1]
    assert reached < start
    assert advice.trial.drop_share == pytest.approx(1 - reached / start)
    assert advice.best_use.of_time == "training"
    assert advice.trial.peak_memory_bytes > 2**27
    assert advice.trial.run_seconds > 32 * advice.trial.step_seconds
    assert {(t.name, t.use) for t in advice.texts} == {
        (n, u) for n in ("fr", "en") for u in ("train", "evaluate")
    }
    assert all(
        t.backbone_bits == pytest.approx(start, rel=0.1) for t in advice.texts if t.name == "fr"
    )
    for part in ("Texts under the backbone", "at its peak", "bits per byte within these steps"):
        assert part in text
    assert "best use of the time: training as planned; the steps tried changed" in text


def test_new_tokens_have_the_backbone_to_improve_on(tmp_path: Path) -> None:
    """Before the first step new tokens alone make the target worse here, or better."""
    advice, _ = printed(vocabulary_values(tmp_path), trial_steps=4)
    trial = advice.trial
    (of_text,) = (it for it in advice.texts if it.use == "evaluate" and it.role == "target")
    assert trial.backbone_bits == pytest.approx(of_text.backbone_bits, rel=0.1)
    assert trial.backbone_bits != pytest.approx(trial.target_bits[0][1], rel=1e-3)
    assert trial.start_bits == min(trial.backbone_bits, trial.target_bits[0][1])
    assert trial.drop_share == 1 - trial.target_bits[-1][1] / trial.start_bits


def test_a_method_that_trains_nothing_is_not_tried(tmp_path: Path) -> None:
    values = run_values(tmp_path) | {
        "method": "wise-ft",
        "scaling": {"trained": str(tmp_path / "none")},
    }
    advice, text = printed(values, trial_steps=20)
    assert advice.trial is None
    assert advice.best_use is None
    assert "wise-ft trains nothing" in text


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    with pytest.raises(UserError, match="trial steps; got 3"):
        printed(values, trial_steps=3)
    with pytest.raises(UserError, match="budget"):
        printed(values | {"budget": 1e-6}, trial_steps=0)
    assert not (tmp_path / "run").exists()
