"""`neutral compare`: the plan of a comparison, and what came of it."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from neutral_residues.compare.plan import CellPlan, Plan, plan
from neutral_residues.compare.runner import Outcome
from neutral_residues.config.comparison import CompareConfig
from neutral_residues.units import human_bytes, human_seconds


def print_plan(config: CompareConfig, *, console: Console | None = None) -> Plan:
    """The cells of a comparison, one line for each group, and what all of them take."""
    console = console or Console()
    with console.status("counting, and trying a few steps where no cell is finished ..."):
        found = plan(config)
    console.print(_groups_table(found))
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
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return found


def _groups_table(found: Plan) -> Table:
    table = Table(title="Cells", title_justify="left")
    table.add_column("group", overflow="fold")
    for column in ("done", "new", "trained", "learning rates", "time each"):
        table.add_column(column, justify="right")
    groups: dict[str, list[CellPlan]] = {}
    for cell in found.cells:
        groups.setdefault(cell.cell.group, []).append(cell)
    for group, members in groups.items():
        table.add_row(*_group_row(group, members))
    return table


def _group_row(group: str, members: list[CellPlan]) -> list[str]:
    one = members[0]
    done = f"{sum(member.done for member in members)}/{len(members)}"
    if one.problem:
        return [f"{group}\n[red]cannot run: {escape(one.problem)}[/red]", done, *("-" * 4)]
    rates = sorted({member.cell.config.training.learning_rate or 0.0 for member in members})
    return [
        group,
        done,
        f"{100 * one.budget:.2f} %",
        f"{one.trained_weights:,}",
        " ".join(f"{rate:g}" for rate in rates) if one.trained_weights else "-",
        "-" if one.seconds is None else human_seconds(one.seconds),
    ]


def print_outcome(
    outcome: Outcome, config: CompareConfig, *, console: Console | None = None
) -> None:
    """How many cells are done, which failed and why, and what to type next."""
    console = console or Console()
    console.print(
        f"{len(outcome.records)} cells done, {len(outcome.failures)} failed, in {config.output}"
    )
    for name, reason in outcome.failures.items():
        console.print(Text(f"  {name}: {reason}"), soft_wrap=True)
    if outcome.records:
        console.print(f"the page: neutral report {config.output}", highlight=False)
