"""A trial run: the run itself with fewer steps, in a process of its own."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from neutral_residues.config.run import make_run
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.results.record import Cost
from neutral_residues.training.trial_run import TrialResult, run_trial, shortened
from tiny_run import run_values


@pytest.mark.parametrize(
    ("code", "stderr", "line"),
    [
        (2, "noise\nerror: the loss is not finite\n", "^the loss is not finite$"),
        (
            -9,
            "",
            r"trial run failed, and so would the run; got killed by SIGKILL \(out of memory\?\)",
        ),
        (1, "Traceback\nCudaError: no memory\n", "got CudaError: no memory"),
        (0, "", "got exit code 0"),  # and no result
    ],
)
def test_a_trial_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, stderr: str, line: str
) -> None:
    ended = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(
        "neutral_residues.training.trial_run.subprocess.run", lambda *args, **kwargs: ended
    )
    with pytest.raises(UserError, match=line):
        run_trial(make_run(run_values(tmp_path)), num_steps=4)


def test_a_trial_is_the_run_with_fewer_steps(tmp_path: Path) -> None:
    config = make_run(run_values(tmp_path, steps=100, warmup_steps=50, batch_rows=4))
    small = shortened(config, output=tmp_path / "small", num_steps=20)
    assert (small.training.steps, small.training.warmup_steps, small.training.evaluate_every) == (
        20,
        5,
        10,
    )
    assert small.training.batch_rows == 4
    assert small.data == config.data


def test_time_adds_up(tmp_path: Path) -> None:
    config = make_run(run_values(tmp_path, steps=100, evaluate_every=30))
    found = TrialResult(
        cost=Cost(step_seconds=0.5),
        curve=[],
        backbone_bits={},
        loading_seconds=7.0,
        measuring_seconds=2.0,
        measured_tokens=100,
    )
    assert config.evaluation.tokens_while_training == 400
    data = RunData((), (stream(1000), stream(300)))
    # 7 for loading, 100 steps, five measurements of 400 + 300 tokens during training, backbone and
    # extended model on all 1300 at the end.
    assert found.run_seconds(config, data) == 7 + 50 + 0.02 * (5 * 700 + 2 * 1300)


def stream(num_tokens: int) -> TokenStream:
    ends = np.array([num_tokens])
    return TokenStream("fr", "target", np.zeros(num_tokens, np.uint16), ends, ends)
