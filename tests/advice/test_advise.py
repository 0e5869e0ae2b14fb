"""Advice as a person meets it: nothing is written but what is asked for, and the run starts as if
nobody had asked."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from neutral_residues.advice.advise import advise
from neutral_residues.advice.trial_run import Rehearsal, in_small, probe, whole_run_seconds
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.results.record import Cost
from neutral_residues.run import extend
from tiny_run import SOURCE_WORDS, make_text, run_values


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def printed(values: dict[str, Any], **settings: Any) -> tuple[Any, str]:
    out = io.StringIO()
    advice = advise(make_run(values), console=Console(file=out, width=300), **settings)
    return advice, out.getvalue()


def test_everything_in_one_go(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=40, learning_rate=0.01, save_every=3)
    advice, text = printed(values, probe_steps=8, output=tmp_path / "advice.json")
    assert json.loads((tmp_path / "advice.json").read_text())["probe"]["steps"] == 8
    assert not (tmp_path / "run").exists()
    assert advice.probe is not None
    assert [step for step, _ in advice.probe.target_bits] == [0, 4, 8]
    start, reached = advice.probe.target_bits[0][1], advice.probe.reached_bits
    assert reached == advice.probe.target_bits[-1][1]
    assert reached < start
    assert advice.probe.peak_memory_bytes > 2**27
    assert advice.probe.run_seconds > 32 * advice.probe.step_seconds
    assert {(t.name, t.use) for t in advice.texts} == {
        (n, u) for n in ("fr", "en") for u in ("train", "evaluate")
    }
    assert all(
        t.backbone_bits == pytest.approx(start, rel=0.1) for t in advice.texts if t.name == "fr"
    )
    for part in (
        "Texts under the backbone",
        "at its peak",
        "Recommended",
        "training.learning_rate",
    ):
        assert part in text


def test_a_method_that_trains_nothing_is_not_tried(tmp_path: Path) -> None:
    values = run_values(tmp_path) | {
        "method": "wise-ft",
        "averaging": {"finetuned": str(tmp_path / "none")},
    }
    advice, text = printed(values, probe_steps=20)
    assert advice.probe is None
    assert "wise-ft trains nothing" in text


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    with pytest.raises(UserError, match="probe_steps; got 3"):
        printed(values, probe_steps=3)
    with pytest.raises(UserError, match="budget"):
        printed(values | {"budget": 1e-6}, probe_steps=0)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("code", "stderr", "line"),
    [
        (2, "noise\nerror: the loss is not finite\n", "^the loss is not finite$"),
        (
            -9,
            "",
            r"the probe failed, and so would the run; got killed by SIGKILL \(out of memory\?\)",
        ),
        (1, "Traceback\nCudaError: no memory\n", "got CudaError: no memory"),
        (0, "", "got exit code 0"),  # and no result
    ],
)
def test_a_probe_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, line: str
) -> None:
    ended = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(
        "neutral_residues.advice.trial_run.subprocess.run", lambda *args, **kwargs: ended
    )
    with pytest.raises(UserError, match=line):
        probe(make_run(run_values(tmp_path)), num_steps=4)


def test_a_probe_is_the_run_in_small(tmp_path: Path) -> None:
    config = make_run(run_values(tmp_path, steps=100, warmup_steps=50, batch_rows=4))
    small = in_small(config, output=tmp_path / "small", num_steps=20)
    assert (small.training.steps, small.training.warmup_steps, small.training.evaluate_every) == (
        20,
        5,
        10,
    )
    assert small.training.batch_rows == 4
    assert small.data == config.data


def test_time_adds_up(tmp_path: Path) -> None:
    config = make_run(run_values(tmp_path, steps=100, evaluate_every=30))
    found = Rehearsal(
        Cost(step_seconds=0.5), [], loading_seconds=7.0, measuring_seconds=2.0, measured_tokens=100
    )
    # 7 for loading, 100 steps, five measurements of 200 tokens on the way, both sides of 1000 at
    # the end.
    assert (
        whole_run_seconds(config, found, on_the_way=200, at_the_end=1000) == 7 + 50 + 5 * 4 + 2 * 20
    )


def test_a_new_run_is_warned_of_once_and_not_changed(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=2)
    make_text(tmp_path / "en.jsonl", SOURCE_WORDS, documents=20, seed=1)
    lines = (tmp_path / "en.jsonl").read_text()
    (tmp_path / "en.jsonl").write_text(lines + lines)  # every document twice
    out = io.StringIO()
    record = extend(make_run(values), console=Console(file=out, width=300))
    assert "warning: corpus en: 50 % of its documents are copies of others" in out.getvalue()
    quiet = io.StringIO()
    other = values | {"output": str(tmp_path / "other")}
    assert (
        extend(make_run(other), console=Console(file=quiet), advice=False).metrics == record.metrics
    )
    assert "warning" not in quiet.getvalue()
    (tmp_path / "run" / "record.json").unlink()  # as if it had been stopped
    again = io.StringIO()
    extend(make_run(values), console=Console(file=again))
    assert "warning" not in again.getvalue()
