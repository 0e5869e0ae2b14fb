"""`neutral compare`: prints the plan of a comparison, its progress and its outcome."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from rich import progress as rich_progress
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column, Table
from rich.text import Text

from neutral_residues.cli.lines import print_line
from neutral_residues.cli.tables import new_table
from neutral_residues.compare.grid import Cell
from neutral_residues.compare.plan import CellPlan, Plan, plan
from neutral_residues.compare.runner import CompareCallback, Outcome
from neutral_residues.config.comparison import CompareConfig
from neutral_residues.results.record import Record
from neutral_residues.units import human_bytes, human_seconds


def print_plan(config: CompareConfig, *, console: Console | None = None) -> Plan:
    """Print the cells of a comparison, in groups, and their total disk space and time."""
    console = console or Console()
    with console.status("counting, and trying a few steps where no cell is finished ..."):
        found = plan(config)
    for table in _groups_tables(found):
        console.print(table)
    problems = {plan.cell.group: plan.problem for plan in found.cells if plan.problem}
    for group, problem in problems.items():
        print_line(f"{group} cannot run: {problem}", console=console, style="red")
    tuning = " at most (tuning chooses among learning rates)" if config.tune else ""
    lines = [
        f"{found.at_most} cells{tuning}, {found.num_done} done, {found.jobs} at a time",
        f"disk: about {human_bytes(found.disk_bytes)} of weights in {config.output}",
    ]
    if found.seconds_left is not None:
        lines.append(f"time left: about {human_seconds(found.seconds_left)} (estimate)")
    if found.trial_problem is not None:
        lines.append(f"time left: unknown; {found.trial_problem}")
    for line in lines:
        print_line(line, console=console)
    return found


def _groups_tables(found: Plan) -> Iterator[Table]:
    """A table per run file. Its rows are groups of cells: the method on a line, the parts of its
    name that differ from cell to cell below, so that a narrow terminal breaks none of them."""
    runs: dict[str, dict[str, list[CellPlan]]] = {}
    for cell in found.cells:
        run, _, group = cell.cell.group.partition("/")
        runs.setdefault(run, {}).setdefault(group, []).append(cell)
    numbers = ["done", "new", "trained", "learning rates", "time each"]
    for run, groups in runs.items():
        table = new_table(run, ["cells"], numbers)
        table.columns[0].no_wrap = True
        for group, members in groups.items():
            method, *parts = group.split("/")
            table.add_row(*_group_row(f"{method}\n{' '.join(parts)}", members))
        yield table


def _group_row(group: str, members: list[CellPlan]) -> list[str]:
    one = members[0]
    done = f"{sum(member.done for member in members)}/{len(members)}"
    if one.problem:
        return [group, done, *("-" * 4)]
    rates = sorted({member.cell.config.training.learning_rate or 0.0 for member in members})
    return [
        group,
        done,
        f"{100 * one.budget:.2f} %",
        f"{one.trained_weights:,}",
        " ".join(f"{rate:g}" for rate in rates) if one.trained_weights else "-",
        "-" if one.seconds is None else human_seconds(one.seconds),
    ]


class CompareDisplay(CompareCallback):
    """Prints a line for each cell that ends. On a terminal it also shows a progress bar and the
    last line of each log; else it prints a line for each cell that starts, with its log file."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.progress = Progress(
            "{task.description}",
            BarColumn(bar_width=10),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            _LastLine(Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=self.console,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self.cells: TaskID | None = None
        self.running: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.progress.stop()

    def on_begin(self, num_cells: int) -> None:
        self.cells = self.progress.add_task("cells", total=num_cells)

    def on_cell_begin(self, cell: Cell, log: Path) -> None:
        if not self.console.is_terminal:
            self._print(f"{cell.name}  starts, prints to {log}")
        self.running[cell.name] = self.progress.add_task(cell.name, total=1, log=log)

    def on_cell_end(self, cell: Cell, result: Record | str, seconds: float) -> None:
        if cell.name in self.running:
            self.progress.remove_task(self.running.pop(cell.name))
        if self.cells is not None:
            self.progress.advance(self.cells)
        if isinstance(result, str):
            self._print(f"{cell.name}  failed: {result}")
        elif seconds:
            self._print(f"{cell.name}  {_changes(result)}  {seconds:.0f} s")

    def on_stop(self) -> None:
        self._print("stopping: every running cell writes its checkpoint ...")

    def _print(self, line: str) -> None:
        print_line(line, console=self.console)


class _LastLine(ProgressColumn):
    """The last line of a running cell's log."""

    def render(self, task: Task) -> Text:
        log: Path | None = task.fields.get("log")
        if log is None:
            return Text()
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2000))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return Text(lines[-1].strip() if lines else "starting")


def _changes(record: Record) -> str:
    """Change of each set in per cent of the backbone's bits per byte."""
    return "  ".join(f"{name} {r.rise_percent:+.2f} %" for name, r in record.sets.items())


def print_outcome(
    outcome: Outcome, config: CompareConfig, *, console: Console | None = None
) -> None:
    """Print how many cells are finished, which failed and why, and the command to run next."""
    console = console or Console()
    done, failed = len(outcome.records), len(outcome.failures)
    print_line(f"{done} cells done, {failed} failed, in {config.output}", console=console)
    for name, reason in outcome.failures.items():
        print_line(f"  {name}: {reason}", console=console)
    if outcome.records:
        print_line(f"the page: neutral report {config.output}", console=console)
