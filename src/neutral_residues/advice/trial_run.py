"""A few real steps of a run in a process of their own: what they take, and what the whole run will.

    probe(config, num_steps=20)        starts  python -m neutral_residues.probe run.yaml result.json

The steps are a run in small: the run's own model, method, rows, batch, precision and loop, with a
schedule that fits into so few. A process of its own has a peak of memory of its own, as the run
will; if it is killed, nothing else is.
"""

import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from neutral_residues.backbone import load_tokenizer
from neutral_residues.config.base import dump_run
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, write_json, write_text
from neutral_residues.methods.table import find_method, resolved
from neutral_residues.results.record import Cost
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.run import Run
from neutral_residues.training.setup import prepare_data


@dataclass(frozen=True)
class Rehearsal:
    """What a few steps took and what they did.

    Attributes:
        cost: of these steps, as a run's record has it.
        curve: what was logged and measured, as in the record.
        loading_seconds: from texts to a model that is ready to train.
        measuring_seconds: of one measurement on the way, of `measured_tokens` tokens.
    """

    cost: Cost
    curve: list[dict[str, Any]]
    loading_seconds: float
    measuring_seconds: float
    measured_tokens: int


def probe(config: RunConfig, *, num_steps: int) -> Rehearsal:
    """Train `num_steps` steps of the run, measuring in the middle and at the end.

    Raises:
        UserError: what the run itself would raise; or if the process is killed.
    """
    # Beside the run's own folder: its checkpoints go to the same disk, and /tmp may be memory.
    parent = next(path for path in config.output.absolute().parents if path.is_dir())
    with (
        disk_errors(parent),
        tempfile.TemporaryDirectory(prefix=".neutral-probe-", dir=parent) as folder,
    ):
        plan, result = Path(folder) / "run.yaml", Path(folder) / "result.json"
        write_text(
            plan, dump_run(in_small(config, output=Path(folder) / "run", num_steps=num_steps))
        )
        done = subprocess.run(
            [sys.executable, "-m", "neutral_residues.advice.trial_run", str(plan), str(result)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not result.is_file():
            raise _error(done)
        values: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return Rehearsal(**(values | {"cost": Cost.model_validate(values["cost"])}))


def rehearse(config: RunConfig) -> Rehearsal:
    """Train as `extend` does, in a folder that nobody keeps; nothing is saved or measured at the
    end.

    Raises:
        UserError: as `extend`.
    """
    config = resolved(config)
    tokenizer = load_tokenizer(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    data = prepare_data(config, tokenizer, show_progress=False)
    folder, console = RunFolder(config.output), Console(quiet=True)
    run = Run(config, find_method(config.method), folder, tokenizer, data, None, console)
    model, weights = run.attached()
    ready = time.monotonic()
    trainer, cost = run.train(model, weights)
    start = time.monotonic()
    scores = run.quick_scores(model)
    return Rehearsal(
        cost=cost,
        curve=[point for point in trainer.state.log_history if "train_runtime" not in point],
        loading_seconds=ready - run.started,
        measuring_seconds=time.monotonic() - start,
        measured_tokens=sum(score.num_tokens for score in scores),
    )


def in_small(config: RunConfig, *, output: Path, num_steps: int) -> RunConfig:
    """The run with so few steps, in another folder, measured on a batch of each set."""
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


def whole_run_seconds(
    config: RunConfig, found: Rehearsal, *, on_the_way: int, at_the_end: int
) -> float | None:
    """Wall time of the whole run at the probe's speed: loading, steps, measuring on the way and
    both sides at the end.

    Args:
        on_the_way: tokens of one measurement while training.
        at_the_end: tokens of all evaluation sets.
    """
    training, step = config.training, found.cost.step_seconds
    if step is None or not found.measured_tokens:
        return None
    times = 1 + math.ceil(training.steps / training.evaluate_every)
    per_token = found.measuring_seconds / found.measured_tokens
    return (
        found.loading_seconds
        + training.steps * step
        + per_token * (times * on_the_way + 2 * at_the_end)
    )


def _error(done: "subprocess.CompletedProcess[str]") -> UserError:
    lines = done.stderr.strip().splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if said:
        return UserError(said[-1])
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        reason = f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    else:
        reason = lines[-1].strip()[:300] if lines else f"exit code {done.returncode}"
    return UserError(
        "the probe failed, and so would the run",
        got=reason,
        do="smaller training.batch_rows need less memory",
    )


def _main(plan: str, result: str) -> None:
    try:
        found = rehearse(load_run(Path(plan)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    write_json(Path(result), asdict(found) | {"cost": found.cost.model_dump(mode="json")})


if __name__ == "__main__":
    _main(*sys.argv[1:])
