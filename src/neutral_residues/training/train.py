"""Trains a run from its last complete checkpoint to its last step, with measurements."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from neutral_residues.errors import Stopped
from neutral_residues.results.record import Cost
from neutral_residues.training.callbacks import MeasureAndShow, StepClock, StopOnSignal
from neutral_residues.training.checkpoints import last_checkpoint
from neutral_residues.training.cost import peak_memory_bytes
from neutral_residues.training.progress import RunProgress, TrainingDisplay
from neutral_residues.training.setup import Setup, ranks
from neutral_residues.training.trainer import ExtensionTrainer


@dataclass(frozen=True)
class Training:
    """Results of a training, besides the weights.

    Attributes:
        curve: Trainer's log history: losses and measurements, one entry for each log line.
        cost: time, memory and weights; `seconds` is None for a resumed run.
        backbone_bits: set -> bits per byte of the backbone on what is measured during training;
            empty on all ranks but the first.
    """

    curve: list[dict[str, Any]]
    cost: Cost
    backbone_bits: dict[str, float] = field(default_factory=dict)


def train(setup: Setup, model: nn.Module, *, checkpoints: Path, progress: RunProgress) -> Training:
    """Train `model` in place.

    Args:
        checkpoints: folder to write checkpoints to; training resumes from the last one in it.

    Raises:
        UserError: if every checkpoint is damaged, or a loss or gradient is not finite.
        Stopped: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    with ranks().main_process_first():
        checkpoint = last_checkpoint(checkpoints, on_damaged=progress.say)
    if checkpoint is not None:
        progress.say(f"resuming from {checkpoint}")
    trainer = ExtensionTrainer(setup, model, checkpoints)
    stop, clock, measure = StopOnSignal(trainer.accelerator), StepClock(), None
    trainer.add_callback(stop)
    trainer.add_callback(clock)
    with TrainingDisplay(
        progress.console,
        title=setup.config.method,
        total_steps=setup.config.training.steps,
        tokens_per_step=setup.tokens_per_step,
    ) as display:
        if trainer.is_world_process_zero():
            measure = MeasureAndShow(setup, trainer, display)
            trainer.add_callback(measure)
        began = time.monotonic()
        with stop:
            trainer.train_from(checkpoint)
        seconds = time.monotonic() - began - (measure.seconds if measure else 0.0)
    done, steps = trainer.state.global_step, setup.config.training.steps
    if done < steps:
        raise Stopped(done, steps)
    weights = setup.weights
    stored = 0 if setup.method.keeps_backbone else weights.num_backbone_weights
    timed = seconds if checkpoint is None else None
    cost = Cost(
        tokens=setup.num_tokens,
        seconds=timed,
        tokens_per_second=setup.num_tokens / timed if timed else None,
        step_seconds=clock.median_seconds,
        peak_memory_bytes=peak_memory_bytes(setup.device),
        trainable_weights=weights.num_trained_weights,
        new_weights=weights.num_new_weights,
        stored_weights=weights.num_new_weights + stored,
        backbone_weights=weights.num_backbone_weights,
    )
    curve = [point for point in trainer.state.log_history if "train_runtime" not in point]
    start = measure.start if measure else {}
    return Training(curve, cost, {name: it.backbone_bits_per_byte for name, it in start.items()})
