"""Callbacks of a training: measurements, display, step times; handling of SIGINT and SIGTERM."""

import signal
import statistics
import time
from contextlib import suppress
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import TrainerCallback

from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.results.set_result import SetResult
from neutral_residues.training.progress import TrainingDisplay
from neutral_residues.training.setup import Setup
from neutral_residues.training.trainer import ExtensionTrainer

WARMUP_STEPS = 3
"""First steps of a process that are not timed: allocators and caches are cold."""


def quick_results(
    setup: Setup, model: nn.Module, backbone_nats: dict[str, float] | None
) -> dict[str, SetResult]:
    """The extended model on a part of the held-out text.

    Args:
        backbone_nats: nats of each part under the backbone; None before training, to measure them.
    """
    reference = None
    if backbone_nats is None:
        # A new extension adds nothing yet, so one pass measures both sides.
        reference = model if setup.begins_as_backbone else setup.reference()
    return evaluate(
        model,
        setup.data.while_training,
        setup.windows,
        reference=reference,
        backbone_streams=setup.backbone_data.while_training,
        pieces=setup.pieces,
        backbone_nats=backbone_nats,
        max_tokens=setup.config.evaluation.tokens_while_training,
    )


class MeasureAndShow(TrainerCallback):
    """Measures the extended model every `evaluate_every` steps, for the log and the display, and
    passes steps and logs on to the display. Step 0 is the backbone, or the extension that training
    starts from or stands beside.

    Attributes:
        seconds: time that measuring took after step 0.
    """

    def __init__(self, setup: Setup, trainer: ExtensionTrainer, display: TrainingDisplay) -> None:
        self.setup, self.trainer, self.display = setup, trainer, display
        display.doing("measuring the held-out text before the first step")
        # Also where a checkpoint will be loaded.
        self.start = quick_results(setup, trainer.model, None)
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._log(self.start)
            self.display.measured(0, self.start)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, every = state.global_step, self.setup.config.training.evaluate_every
        if step % every == 0 or step == state.max_steps:
            start = time.monotonic()
            backbone_nats = {name: found.backbone_nats for name, found in self.start.items()}
            results = quick_results(self.setup, self.trainer.model, backbone_nats)
            self.seconds += time.monotonic() - start
            self._log(results)
            self.display.measured(step, results)
        self.display.step(step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.display.logged(state.global_step, logs)

    def _log(self, results: dict[str, SetResult]) -> None:
        logs = {f"bits_per_byte/{name}": r.extended_bits_per_byte for name, r in results.items()}
        logs |= {
            f"neutral_tokens/{name}": r.neutral_share
            for name, r in results.items()
            if r.neutral_share is not None
        }
        # Trainer takes any log line for the one that is due at this step, and would skip that one.
        due = self.trainer.control.should_log
        self.trainer.log(logs)
        self.trainer.control.should_log = due


class StepClock(TrainerCallback):
    """Times each optimiser step from its first forward pass, without measuring and saving."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # No need to wait for the GPU: the check that the gradient is finite already did.
        self.seconds.append(time.monotonic() - self._start)

    @property
    def median_seconds(self) -> float | None:
        """None if no step was done after those that warm up."""
        steps = self.seconds[WARMUP_STEPS:]
        return statistics.median(steps) if steps else None


class StopOnSignal(TrainerCallback):
    """SIGINT or SIGTERM on any rank, inside this context: a checkpoint and a stop after the step; a
    second one stops now."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.requested = accelerator, False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        with suppress(ValueError):  # not in the main thread, which alone can handle signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._request)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop = self.requested
        if self.accelerator.num_processes > 1:
            requested = torch.tensor(float(stop), device=args.device)
            stop = bool(self.accelerator.reduce(requested, "sum"))
        if stop:
            control.should_save = control.should_training_stop = True
