"""Trainer callbacks: measurements, display, step times, handling of SIGINT and SIGTERM."""

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
from neutral_residues.training.models import reference_of
from neutral_residues.training.progress import TrainingDisplay
from neutral_residues.training.setup import Setup
from neutral_residues.training.trainer import ExtensionTrainer

WARMUP_STEPS = 3
"""First steps of a process, which are not timed: allocators and caches are cold."""


def quick_results(
    setup: Setup, model: nn.Module, backbone_nats: dict[str, float] | None
) -> dict[str, SetResult]:
    """Measures backbone and extended model on the first tokens of each held-out set.

    Args:
        backbone_nats: for each set, nats of these tokens under the backbone, from an earlier call;
            None to measure the backbone too.

    Returns:
        For each set, its results.
    """
    reference = None
    if backbone_nats is None:
        # A new extension adds nothing yet, so one pass measures both models.
        reference = model if setup.begins_as_backbone else reference_of(setup)
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
    """Measures the extended model every `training.evaluate_every` steps, for the log and the
    display, and passes steps and logs to the display. The measurement at step 0 is that of the
    backbone, or of the extensions of `start_from` and `beside`.

    Attributes:
        seconds: time spent on measurements after step 0.
    """

    def __init__(self, setup: Setup, trainer: ExtensionTrainer, display: TrainingDisplay) -> None:
        self.setup, self.trainer, self.display = setup, trainer, display
        display.doing("measuring the held-out text before the first step")
        # Needed by a resumed run too: it holds the nats of the backbone.
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
        # `log` resets this flag, and Trainer would then skip its own log line of this step.
        due = self.trainer.control.should_log
        self.trainer.log(logs)
        self.trainer.control.should_log = due


class StepClock(TrainerCallback):
    """Times each optimiser step from its first forward pass; measuring and saving are not
    included."""

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
        """Median time of a step; None if no step followed the first `WARMUP_STEPS`."""
        steps = self.seconds[WARMUP_STEPS:]
        return statistics.median(steps) if steps else None


class StopOnSignal(TrainerCallback):
    """Inside this context, SIGINT or SIGTERM on any rank saves a checkpoint and stops training
    after the current step; a second signal raises KeyboardInterrupt at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.requested = accelerator, False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        with suppress(ValueError):  # only the main thread can handle signals
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
