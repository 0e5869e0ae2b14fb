"""Progress display of a run: a live panel on a terminal, plain lines elsewhere. No torch."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import progress as rich_progress
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from neutral_residues.results.record import TaskScore
from neutral_residues.results.set_result import SetResult


def print_plain(console: Console, line: str | Text) -> None:
    """Print a line as it is; where there is no terminal, without breaking it."""
    console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def announce(console: Console, what: str) -> None:
    """Print a line about what begins, where no terminal shows a bar."""
    if not console.is_terminal:
        print_plain(console, f"{what} ...")


class RunProgress:
    """Prints the progress of a run.

    Args:
        console: where to print; default: standard error.
        quiet: print nothing.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, quiet=quiet)

    def say(self, line: str) -> None:
        """Print one line."""
        print_plain(self.console, line)

    @contextmanager
    def tokenising(self, what: str) -> Iterator[Callable[[int], object]]:
        """Show a progress bar while a text is processed, or one line without a terminal.

        Args:
            what: what is done, such as "tokenising fr".

        Yields:
            A function to call with the number of bytes processed since its last call.
        """
        announce(self.console, what)
        with Progress(
            "{task.description}",
            BarColumn(),
            rich_progress.FileSizeColumn(),
            rich_progress.TransferSpeedColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        ) as bar:
            task = bar.add_task(what, total=None)
            yield lambda num_bytes: bar.advance(task, num_bytes)


CLOSED = (
    "every gate is closed on the target text, where nothing opens it again: lower"
    " residues.local_loss_weight or training.learning_rate, or raise training.warmup_steps"
)


class TrainingDisplay:
    """Live display of training: progress, time left, losses, open gates, bits per byte of backbone
    and extended model, tokens per second.

    Args:
        total_steps: number of optimiser steps.
        tokens_per_step: tokens of one optimiser step, over all ranks.
    """

    def __init__(
        self, console: Console, *, title: str, total_steps: int, tokens_per_step: int
    ) -> None:
        self.console, self.title, self.tokens_per_step = console, title, tokens_per_step
        self.losses, self.warned = "", False
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

    def __enter__(self) -> "TrainingDisplay":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def doing(self, what: str) -> None:
        """Show what is done before the first step."""
        self.losses = what
        announce(self.console, what)

    def step(self, step: int) -> None:
        """Show that this step is finished."""
        self.progress.update(self.task, completed=step)
        if steps_per_second := self.progress.tasks[self.task].speed:
            rate = f"{steps_per_second * self.tokens_per_step:,.0f} tokens/s"
            self.progress.update(self.task, rate=rate)

    def logged(self, step: int, logs: Mapping[str, float]) -> None:
        """Show the losses and open gates that the trainer logged; warn once if all gates are closed
        on target text."""
        shown = ("loss_nats/", "open_gates", "local_loss", "kl_nats")
        self.losses = "  ".join(_shown(k, v) for k, v in logs.items() if k.startswith(shown))
        self._print(step, self.losses)
        if logs.get("open_gates_target") == 0 and not self.warned:
            self.warned = True
            self.console.print(CLOSED, highlight=False, style="yellow")

    def measured(self, step: int, results: Mapping[str, SetResult]) -> None:
        """Show bits per byte of backbone and extended model on each held-out set."""
        self.results = results
        line = "bits/byte"
        for name, r in results.items():
            now, before = r.extended_bits_per_byte, r.backbone_bits_per_byte
            line += f"  {name} {now:.3f} (backbone {before:.3f})"
        self._print(step, line)

    def _print(self, step: int, line: str) -> None:
        if not self.console.is_terminal:
            print_plain(self.console, f"{self.title}  step {step:>5}  {line}")

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


MOST_SILENT_SECONDS = 60
"""Without a terminal, what takes longer to measure gets a line this often."""


class MeasuringDisplay:
    """Display of the evaluation: a bar for the set or task in progress, or without a terminal a
    line when it begins and from time to time; a line for each finished task."""

    def __init__(self, console: Console) -> None:
        # With a file of its own: standard error is redirected meanwhile, to hide the progress bars
        # of lm-eval.
        terminal = console.is_terminal
        self.console = Console(file=console.file, quiet=console.quiet, force_terminal=terminal)
        columns = ("{task.description}", BarColumn(), TimeElapsedColumn())
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not terminal
        )
        self.task = self.progress.add_task("measuring", total=None)
        self.begun: set[str] = set()
        self.said = 0.0  # when the last line about the progress was printed

    def __enter__(self) -> "MeasuringDisplay":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def on_progress(self, name: str, done: int, total: int) -> None:
        if name not in self.begun:
            self.begun.add(name)
            self._say(f"measuring {name}")
        elif time.monotonic() - self.said > MOST_SILENT_SECONDS:
            self._say(f"measuring {name}: {100 * done // total} %")
        self.progress.update(self.task, description=name, completed=done, total=total)

    def _say(self, what: str) -> None:
        announce(self.console, what)
        self.said = time.monotonic()

    def on_scores(self, scores: Sequence[TaskScore]) -> None:
        first, changes = scores[0], []
        for score in scores:
            factor = 100 if score.unit == "share" else 1
            before, after = factor * score.backbone, factor * score.extended
            changes.append(f"{score.metric} {before:.4g} -> {after:.4g}")
        cut = f", {first.num_truncated} truncated prompts" if first.num_truncated else ""
        line = f"{first.name}: {', '.join(changes)}, {first.num_items} items{cut}"
        print_plain(self.console, line)


def _shown(key: str, value: float) -> str:
    if key.startswith("open_gates_"):
        label = "target" if key == "open_gates_target" else "open gates source"
        return f"{label} {100 * value:.0f} %"
    labels = {"local_loss": "local loss", "kl_nats": "KL to the backbone"}
    label = labels.get(key, key.replace("loss_nats/", "loss "))
    return f"{label} {value:.4g}"
