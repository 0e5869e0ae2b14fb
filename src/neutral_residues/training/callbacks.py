"""Callbacks of a training: measurements, display, step times; handling of SIGINT and SIGTERM."""

import signal
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

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


class MeasureAndShow(TrainerCallback):
    """Measures the extended model every `evaluate_every` steps, for the log and the display (step 0
    is the backbone), and passes steps and logs on to the display.

    Attributes:
        seconds: time that measuring took after step 0.
    """

    def __init__(self, setup: Setup, trainer: ExtensionTrainer, display: TrainingDisplay) -> None:
        self.setup, self.trainer, self.display = setup, trainer, display
        # Nothing is trained yet, so this is the backbone, also where a checkpoint will be loaded.
        self.backbone = quick_results(setup, trainer.model, None)
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._log(self.backbone)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, every = state.global_step, self.setup.config.training.evaluate_every
        if step % every == 0 or step == state.max_steps:
            start = time.monotonic()
            backbone_nats = {name: found.backbone_nats for name, found in self.backbone.items()}
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


@contextmanager
def stop_on_signal(trainer: ExtensionTrainer) -> Iterator[None]:
    """SIGINT and SIGTERM request a checkpoint and a stop after the step; a second one stops now."""

    def request_stop(number: int, frame: FrameType | None) -> None:
        if trainer.stop_requested:
            raise KeyboardInterrupt
        trainer.stop_requested = True

    try:
        old = {n: signal.signal(n, request_stop) for n in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which alone can handle signals
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
