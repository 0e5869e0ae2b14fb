"""One training, from the last complete checkpoint to the last step, measured as it runs."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from neutral_residues.errors import Stopped
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.results.record import Cost
from neutral_residues.results.set_result import SetResult
from neutral_residues.training.callbacks import Measure, Show, StepClock, stop_on_signal
from neutral_residues.training.checkpoints import last_checkpoint
from neutral_residues.training.cost import peak_memory_bytes
from neutral_residues.training.progress import RunProgress, TrainingDisplay
from neutral_residues.training.setup import Setup
from neutral_residues.training.trainer import ExtensionTrainer, make_trainer


@dataclass(frozen=True)
class Training:
    """What a training gives besides the weights.

    Attributes:
        curve: what was logged and measured, one entry for each line of the log.
        cost: what it took; a resumed run does not know its seconds.
    """

    curve: list[dict[str, Any]]
    cost: Cost


def train(setup: Setup, model: nn.Module, *, checkpoints: Path, progress: RunProgress) -> Training:
    """Train `model` in place.

    Args:
        checkpoints: folder to write checkpoints to, and to resume from.

    Raises:
        UserError: for a damaged checkpoint, or a loss or gradient that is not finite.
        Stopped: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    checkpoint = last_checkpoint(checkpoints)
    if checkpoint is not None:
        progress.say(f"resuming from {checkpoint}")
    trainer = make_trainer(setup, model, checkpoints)
    clock = StepClock()
    trainer.add_callback(clock)
    with progress.training(
        setup.config.method,
        total_steps=setup.config.training.steps,
        tokens_per_step=setup.tokens_per_step,
    ) as display:
        seconds = _run(setup, trainer, checkpoint, display)
    cost = setup.weights.to_record(
        tokens=setup.num_tokens,
        seconds=seconds if checkpoint is None else None,
        step_seconds=clock.median_seconds,
        peak_memory_bytes=peak_memory_bytes(setup.device),
        saves_whole_model=not setup.method.keeps_backbone,
    )
    curve = [point for point in trainer.state.log_history if "train_runtime" not in point]
    return Training(curve, cost)


def quick_results(
    setup: Setup, model: nn.Module, backbone_nats: dict[str, float] | None
) -> dict[str, SetResult]:
    """The extended model on a part of the held-out text.

    Args:
        backbone_nats: nats of each part under the backbone; None while `model` is its own backbone.
    """
    return evaluate(
        model,
        setup.data.while_training,
        setup.windows,
        reference=model if backbone_nats is None else None,
        backbone_nats=backbone_nats,
        max_tokens=setup.config.evaluation.tokens_while_training,
    )


def _run(
    setup: Setup, trainer: ExtensionTrainer, checkpoint: Path | None, display: TrainingDisplay
) -> float:
    """Seconds of training, measurements not counted."""
    measure = None
    steps = setup.config.training.steps
    if trainer.is_world_process_zero():
        measure = Measure(
            partial(quick_results, setup),
            every=setup.config.training.evaluate_every,
            trainer=trainer,
            display=display,
        )
        trainer.add_callback(measure)
        trainer.add_callback(Show(display))
    start = time.monotonic()
    with stop_on_signal(trainer):
        trainer.train_from(checkpoint)
    if trainer.state.global_step < steps:
        raise Stopped(trainer.state.global_step, steps)
    return time.monotonic() - start - (measure.seconds if measure else 0.0)
