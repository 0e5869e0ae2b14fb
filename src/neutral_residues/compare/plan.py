"""What a comparison would do, before it starts: cells, weights, floating-point operations, time and
disk.

Counted: cells, weights, tokens, operations, disk. Estimated: time, from the cells of the same
method that are done, and otherwise from operations at the speed of one forward pass of the
backbone, timed here and now.

Operations of a training token, N backbone weights, R new ones and T that train: 2 (N + R) forward,
2 (N + R) back to the activations, 2 T for the weights' own gradients. Measuring runs extended model
and backbone: 2 (2 N + R).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from neutral_residues.backbone import (
    empty_backbone,
    frozen_backbone,
    load_config,
    load_tokenizer,
    pick_device,
)
from neutral_residues.compare.grid import Cell, Cells, expand
from neutral_residues.compare.runner import finished_records, shares_of_machine
from neutral_residues.config.comparison import CompareConfig
from neutral_residues.config.run import RunConfig
from neutral_residues.errors import UserError
from neutral_residues.methods.table import find_method
from neutral_residues.results.record import Record
from neutral_residues.training.cost import WeightCount
from neutral_residues.training.setup import RunData, prepare_data
from neutral_residues.units import human_bytes, human_seconds

PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class CellPlan:
    """What one cell costs.

    Attributes:
        problem: why it cannot run, in one line; the other numbers are 0 then.
        new_weights, trained_weights: of the extension.
        operations: floating-point operations of training and of measuring at the end.
        disk_bytes: what stays: the saved weights.
        seconds: estimated; None where nothing is known.
        done: it is finished already.
    """

    cell: Cell
    problem: str | None = None
    new_weights: int = 0
    trained_weights: int = 0
    budget: float = 0.0
    operations: float = 0.0
    disk_bytes: int = 0
    seconds: float | None = None
    done: bool = False

    @property
    def label(self) -> str:
        """As its record will have it."""
        return self.cell.config.label or find_method(self.cell.config.method).name


def print_plan(config: CompareConfig, *, console: Console | None = None) -> list[CellPlan]:
    """Print the cells of a comparison, one line for each group, and what all of them take; returns
    the cells.

    Tokenises into the cache, which the cells then use.

    Raises:
        UserError: for whatever would stop the comparison before it starts.
    """
    console = console or Console()
    cells = expand(config)
    everything = [*cells.trained, *cells.derived]
    one_of_each = {
        cell.group: cell for cell in reversed(everything)
    }  # learning rate and seed change no count
    counted = {group: _count(cell) for group, cell in one_of_each.items()}
    plans = [replace(counted[cell.group], cell=cell) for cell in everything]
    jobs, threads = shares_of_machine(config)
    plans = _with_seconds(plans, finished_records(config, everything), threads=threads)
    console.print(_table(plans))
    _print_totals(plans, cells, config, jobs, console)
    return plans


def _count(cell: Cell) -> CellPlan:
    config = cell.config
    model_config = load_config(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    backbone = empty_backbone(model_config, trust_remote_code=config.trust_remote_code)
    weights = WeightCount.of_backbone(backbone)
    method = find_method(config.method)
    if method.learning_rate is not None:
        try:
            weights = weights.with_model(method.attach(backbone, config))
        except UserError as error:
            return CellPlan(cell, problem=str(error))
    whole = 0 if method.keeps_backbone else weights.num_backbone_weights
    return CellPlan(
        cell,
        new_weights=weights.num_new_weights,
        trained_weights=weights.num_trained_weights,
        budget=weights.budget,
        operations=_operations(config, weights, trains=method.learning_rate is not None),
        disk_bytes=4 * (weights.num_new_weights + whole),
    )


def _operations(config: RunConfig, weights: WeightCount, *, trains: bool) -> float:
    backbone, new = weights.num_backbone_weights, weights.num_new_weights
    training = config.training
    tokens = training.steps * training.batch_rows * training.accumulation * config.data.block_tokens
    measured = (
        sum(stream.num_tokens for stream in _data(config).evaluate)
        * config.context_tokens
        / config.stride_tokens
    )
    train = tokens * (4 * (backbone + new) + 2 * weights.num_trained_weights) if trains else 0
    return train + measured * 2 * (2 * backbone + new)


def _data(config: RunConfig) -> RunData:
    tokenizer = load_tokenizer(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    return prepare_data(config, tokenizer, show_progress=False)


def _with_seconds(
    plans: Sequence[CellPlan], done: dict[str, Record], *, threads: int
) -> list[CellPlan]:
    """Seconds of each cell from those that are done, its own label's before others', or at the
    probed speed."""
    known: dict[str, list[float]] = {}
    for plan in plans:
        record = done.get(plan.cell.name)
        # What a weight average records is the time of the fine-tuning behind it too.
        if record is not None and record.cost.wall_seconds and plan.trained_weights:
            known.setdefault(record.label, []).append(record.cost.wall_seconds / plan.operations)
    each = {label: median(values) for label, values in known.items()}
    other = (
        median(each.values())
        if each
        else 1 / _operations_per_second(plans[0].cell.config, threads=threads)
    )
    return [
        replace(
            plan,
            seconds=None if plan.problem else plan.operations * each.get(plan.label, other),
            done=plan.cell.name in done,
        )
        for plan in plans
    ]


@torch.inference_mode()
def _operations_per_second(config: RunConfig, *, threads: int) -> float:
    """Of forward passes of the backbone on one batch, with the threads that one cell will have."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    device = pick_device()
    model = frozen_backbone(config, device)
    rows = torch.zeros(
        (config.training.batch_rows, config.data.block_tokens), dtype=torch.long, device=device
    )
    passes, start = 0, time.monotonic()
    while passes < 2 or time.monotonic() - start < PROBE_SECONDS:
        if passes == 1:
            start = time.monotonic()  # the first one warms up
        model(input_ids=rows, use_cache=False).logits[0, 0, 0].item()
        passes += 1
    torch.set_num_threads(before)
    operations = (passes - 1) * 2 * sum(p.numel() for p in model.parameters()) * rows.numel()
    return operations / (time.monotonic() - start)


def _table(plans: Sequence[CellPlan]) -> Table:
    table = Table(title="Cells", title_justify="left")
    table.add_column("group", overflow="fold")
    for column in ("done", "new", "trained", "learning rates", "time each"):
        table.add_column(column, justify="right")
    groups: dict[str, list[CellPlan]] = {}
    for plan in plans:
        groups.setdefault(plan.cell.group, []).append(plan)
    for group, members in groups.items():
        one = members[0]
        done = f"{sum(member.done for member in members)}/{len(members)}"
        if one.problem:
            table.add_row(
                f"{group}\n[red]cannot run: {escape(one.problem)}[/red]", done, "-", "-", "-", "-"
            )
            continue
        rates = sorted({member.cell.config.training.learning_rate or 0.0 for member in members})
        table.add_row(
            group,
            done,
            f"{100 * one.budget:.2f} %",
            f"{one.trained_weights:,}",
            " ".join(f"{rate:g}" for rate in rates) if one.trained_weights else "-",
            "-" if one.seconds is None else human_seconds(one.seconds),
        )
    return table


def _print_totals(
    plans: Sequence[CellPlan], cells: Cells, config: CompareConfig, jobs: int, console: Console
) -> None:
    most = cells.at_most()
    share = most / len(plans)  # tuning runs fewer than all combinations
    left = [plan for plan in plans if not plan.done and not plan.problem]
    console.print(
        f"{most} cells{' at most (tuning chooses among learning rates)' if config.tune else ''}, "
        f"{sum(plan.done for plan in plans)} done, {jobs} side by side",
        highlight=False,
    )
    disk = sum(plan.disk_bytes for plan in plans) * share if config.keep_weights else 0
    console.print(f"disk: about {human_bytes(disk)} of weights in {config.output}", highlight=False)
    seconds = [plan.seconds for plan in left if plan.seconds is not None]
    if seconds:
        total = sum(seconds) * share / jobs
        operations = sum(plan.operations for plan in left) * share
        console.print(
            f"time left: about {human_seconds(total)} for {operations:.1e} operations (estimate)",
            highlight=False,
        )
