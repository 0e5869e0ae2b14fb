"""The progress of a run: a live panel on a terminal, plain lines anywhere else. No torch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich import progress as rich_progress
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Table

from neutral_residues.results.record import TaskScore
from neutral_residues.results.set_result import SetResult


class RunProgress:
    """Where a run reports its progress.

    Args:
        console: where to print; default: standard error.
        quiet: print nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)

    def say(self, line: str) -> None:
        """Print one line."""
        self.console.print(line, highlight=False, markup=False)

    @contextmanager
    def tokenising(self, corpus: str) -> Iterator[Callable[[int], object]]:
        """A bar on a terminal while a corpus is tokenised; it is told the bytes of each batch."""
        with Progress(
            "{task.description}",
            BarColumn(),
            rich_progress.FileSizeColumn(),
            rich_progress.TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task(f"tokenising {corpus}", total=None)
            yield lambda num_bytes: bar.advance(task, num_bytes)


class TrainingDisplay:
    """Progress, loss per corpus, open gates, bits per byte of backbone and extended model, tokens
    per second, time left.

    Args:
        total_steps: steps of the training.
        tokens_per_step: tokens that one optimiser step reads.
    """

    def __init__(
        self, console: Console, *, title: str, total_steps: int, tokens_per_step: int
    ) -> None:
        self.console, self.title, self.tokens_per_step = console, title, tokens_per_step
        self.losses = ""
        self.results: Mapping[str, SetResult] = {}
        self.progress = Progress(
            "{task.description}",
            BarColumn(),
            rich_progress.MofNCompleteColumn(),
            TimeElapsedColumn(),
            "left",
            rich_progress.TimeRemainingColumn(),
            "{task.fields[rate]}",
        )
        self.task = self.progress.add_task(title, total=total_steps, rate="")
        self.live = Live(console=console, get_renderable=self._panel)
        self.first: tuple[float, int] | None = None

    def __enter__(self) -> "TrainingDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def step(self, step: int) -> None:
        """A step is done."""
        now = time.monotonic()
        self.first = self.first or (now, step)
        elapsed, tokens = now - self.first[0], (step - self.first[1]) * self.tokens_per_step
        rate = f"{tokens / elapsed:,.0f} tokens/s" if tokens and elapsed else ""
        self.progress.update(self.task, completed=step, rate=rate)

    def logged(self, step: int, logs: Mapping[str, float]) -> None:
        """The trainer logged sums since the last time."""
        shown = ("loss_nats/", "open_gates", "local_loss")
        losses = (_shown(key, value) for key, value in logs.items() if key.startswith(shown))
        self.losses = "  ".join(losses)
        self._print(step, self.losses)

    def measured(self, step: int, results: Mapping[str, SetResult]) -> None:
        """Backbone and extended model were measured on these sets."""
        self.results = results
        bits = (
            f"{name} {r.extended_bits_per_byte:.3f} (backbone {r.backbone_bits_per_byte:.3f})"
            for name, r in results.items()
        )
        self._print(step, "  ".join(["bits/byte", *bits]))

    def _print(self, step: int, line: str) -> None:
        if not self.console.is_terminal:
            self.console.print(f"{self.title}  step {step:>5}  {line}", highlight=False)

    def _panel(self) -> Group:
        parts: list[Any] = [self.progress]
        if self.losses:
            parts.append("  " + self.losses)
        if self.results:
            table = Table("bits per byte", box=None)
            for column in ("backbone", "now", "change"):
                table.add_column(column, justify="right")
            for name, r in self.results.items():
                sides = (f"{b:.3f}" for b in (r.backbone_bits_per_byte, r.extended_bits_per_byte))
                table.add_row(name, *sides, f"{r.rise_percent:+.2f} %")
            parts.append(table)
        return Group(*parts)


class MeasuringDisplay:
    """A bar for the set or task that is being measured, and a line for each finished task."""

    def __init__(self, console: Console) -> None:
        # Pinned to its file: lm-eval's own progress bars are kept from standard error meanwhile.
        self.console = Console(
            file=console.file, quiet=console.quiet, force_terminal=console.is_terminal
        )
        self.progress = Progress(
            "{task.description}",
            BarColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("measuring", total=None)

    def __enter__(self) -> "MeasuringDisplay":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def on_progress(self, name: str, done: int, total: int) -> None:
        self.progress.update(self.task, description=name, completed=done, total=total)

    def on_score(self, score: TaskScore) -> None:
        factor = 100 if score.unit == "share" else 1
        cut = f", {score.num_truncated} truncated prompts" if score.num_truncated else ""
        self.console.print(
            f"{score.name}: {score.metric} {factor * score.backbone:.4g} ->"
            f" {factor * score.extended:.4g}, {score.num_items} items{cut}",
            highlight=False,
        )


def _shown(key: str, value: float) -> str:
    if key.startswith("open_gates_"):
        label = "target" if key == "open_gates_target" else "open gates source"
        return f"{label} {100 * value:.0f} %"
    label = "local loss" if key == "local_loss" else key.replace("loss_nats/", "loss ")
    return f"{label} {value:.4g}"
