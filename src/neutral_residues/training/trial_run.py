"""A few real steps of a run in a process of their own, to estimate memory and time of the run.

    run_trial(config, num_steps=20)    starts  python -m neutral_residues.training.trial_run

The trial is the run with fewer steps: same model, method, rows, batch size, precision and training
loop. In a separate process the peak memory is that of the run, and running out of memory kills
only the trial.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from neutral_residues.config.base import to_yaml
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.data.run_data import RunData
from neutral_residues.errors import UserError, exit_reason
from neutral_residues.files import disk_errors, write_json, write_text
from neutral_residues.results.base import Part
from neutral_residues.results.record import Cost
from neutral_residues.training.callbacks import WARMUP_STEPS, quick_results
from neutral_residues.training.models import model_to_train
from neutral_residues.training.progress import RunProgress
from neutral_residues.training.setup import Setup
from neutral_residues.training.train import train

MIN_STEPS = WARMUP_STEPS + 1


class TrialResult(Part):
    """Time and memory of a trial."""

    cost: Cost
    """Cost of these steps, as in a run's record."""
    curve: list[dict[str, Any]]
    """Logs and measurements during training, as in a run's record."""
    backbone_bits: dict[str, float]
    """Set -> bits per byte of the backbone on what the curve measures."""
    loading_seconds: float
    """Time from the start until the model is ready to train."""
    measuring_seconds: float
    """Time of one measurement of `measured_tokens` tokens."""
    measured_tokens: int

    def run_seconds(self, config: RunConfig, data: RunData) -> float | None:
        """Estimated wall time of the whole run in seconds: loading, steps, measurements during
        training, and the evaluation of backbone and extended model at the end. None if no step was
        timed."""
        training, step = config.training, self.cost.step_seconds
        if step is None or not self.measured_tokens:
            return None
        sizes = ([s.num_tokens for s in part] for part in (data.while_training, data.evaluate))
        per_token = self.measuring_seconds / self.measured_tokens
        measuring = per_token * config.tokens_to_measure(*sizes)
        return self.loading_seconds + training.steps * step + measuring


def check_trial_steps(num_steps: int) -> None:
    """Raise a UserError if so few steps would not be timed."""
    if num_steps < MIN_STEPS:
        allowed = f"0, or {MIN_STEPS} and more: the first {WARMUP_STEPS} are not timed"
        raise UserError("trial steps", got=num_steps, allowed=allowed)


def run_trial(config: RunConfig, *, num_steps: int, threads: int | None = None) -> TrialResult:
    """Train `num_steps` steps in another process, and measure in the middle and at the end.

    Args:
        threads: CPU threads of that process; default: those of this one.

    Raises:
        UserError: for too few steps, for any error that the run itself would raise, or if the
            process dies (out of memory).
    """
    check_trial_steps(num_steps)
    # Next to the run's own folder, so that checkpoints are written to the same disk; /tmp may be
    # in memory.
    parent = next(path for path in config.output.absolute().parents if path.is_dir())
    with (
        disk_errors(parent),
        tempfile.TemporaryDirectory(prefix=".neutral-trial-", dir=parent) as folder,
    ):
        plan, result = Path(folder) / "run.yaml", Path(folder) / "result.json"
        trial = shortened(config, output=Path(folder) / "run", num_steps=num_steps)
        write_text(plan, to_yaml(trial))
        threads_of_its_own = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(plan), str(result)],
            env=os.environ | threads_of_its_own,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not result.is_file():
            reason = exit_reason(done.returncode, done.stderr)
            if done.returncode == 2:  # a UserError of the run itself
                raise UserError(reason)
            do = "smaller training.batch_rows need less memory"
            raise UserError("the trial run failed, and so would the run", got=reason, do=do)
        return TrialResult.model_validate_json(result.read_bytes())


def shortened(config: RunConfig, *, output: Path, num_steps: int) -> RunConfig:
    """The run with `num_steps` steps and another output folder, measured on at most one batch of
    each held-out set."""
    training = config.training.model_copy(
        update={
            "steps": num_steps,
            "warmup_steps": min(config.training.warmup_steps, num_steps // 4),
            "evaluate_every": max(1, num_steps // 2),
            "save_every": num_steps,
            "report_to": (),
        }
    )
    a_batch = config.evaluation.batch_rows * config.stride_tokens
    tokens = min(config.evaluation.tokens_while_training, a_batch)
    evaluation = config.evaluation.model_copy(update={"tokens_while_training": tokens})
    return config.model_copy(
        update={"output": output, "training": training, "evaluation": evaluation}
    )


def _train_and_measure(config: RunConfig) -> TrialResult:
    start = time.monotonic()
    setup = Setup.of(config)
    setup.prepare()
    model = model_to_train(setup)
    ready = time.monotonic()
    checkpoints, progress = config.output / "checkpoints", RunProgress(quiet=True)
    training = train(setup, model, checkpoints=checkpoints, progress=progress)
    trained = time.monotonic()
    # During training the backbone's nats are known, so their time is left out here: any number
    # serves.
    backbone_nats = {stream.name: 1.0 for stream in setup.data.while_training}
    results = quick_results(setup, model, backbone_nats)
    return TrialResult(
        cost=training.cost,
        curve=training.curve,
        backbone_bits=training.backbone_bits,
        loading_seconds=ready - start,
        measuring_seconds=time.monotonic() - trained,
        measured_tokens=sum(result.num_tokens for result in results.values()),
    )


def _main(plan: str, result: str) -> None:
    try:
        found = _train_and_measure(load_run(Path(plan)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    write_json(Path(result), found.model_dump(mode="json"))


if __name__ == "__main__":
    _main(*sys.argv[1:])
