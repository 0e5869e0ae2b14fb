"""Cost of a comparison before it starts: cells, weights, disk and time.

Cells, weights and disk are counted. Time is estimated from finished cells of the same label, else
of other labels, else from a trial run of one cell, in proportion to the number of floating-point
operations. With N backbone weights, R new weights and T trained weights, a training token takes
2 (N + R) operations in the forward pass, 2 (N + R) for gradients of activations and 2 T for
gradients of weights; a token in the evaluation of both models takes 2 (2 N + R).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from neutral_residues.compare.grid import Cell, expand
from neutral_residues.compare.runner import finished_records, jobs_and_threads
from neutral_residues.config.comparison import CompareConfig
from neutral_residues.data.run_data import RunData
from neutral_residues.errors import UserError
from neutral_residues.results.record import Record
from neutral_residues.training.setup import Setup
from neutral_residues.training.trial_run import MIN_STEPS, run_trial

TRIAL_STEPS = 2 * MIN_STEPS


@dataclass(frozen=True)
class CellPlan:
    """Cost of one cell."""

    cell: Cell
    label: str  # label of its record
    problem: str | None = None  # why it cannot run, in one line; its numbers are 0 then
    trained_weights: int = 0
    budget: float = 0.0  # new weights as a share of the backbone's
    operations: float = 0.0  # floating-point operations of training and final evaluation
    disk_bytes: int = 0  # size of the saved weights
    seconds: float | None = None  # estimated; None if nothing is known
    done: bool = False  # whether it is finished already


@dataclass(frozen=True)
class Plan:
    """Cost of a comparison."""

    cells: tuple[CellPlan, ...]  # all cells that may run
    at_most: int  # number of cells that will run: with tuning, not all of them
    jobs: int  # number of cells that run at the same time
    disk_bytes: float  # size of all weights that are kept
    seconds_left: float | None  # estimated; None if nothing is known, or all cells are finished
    trial_problem: str | None = None  # why the trial run failed, if it did

    @property
    def num_done(self) -> int:
        """Number of finished cells."""
        return sum(plan.done for plan in self.cells)


def plan(config: CompareConfig) -> Plan:
    """Count the cells, weights and disk space of a comparison, and estimate its time. Text is
    tokenised for this, and stays in the cache. Raises a UserError for anything that would prevent
    the start of the comparison."""
    cells = expand(config)
    everything = [*cells.trained, *cells.derived]
    # One cell of each group is enough: counts do not depend on learning rate and seed.
    groups = {cell.group: cell for cell in reversed(everything)}
    counted = {group: _count(cell) for group, cell in groups.items()}
    done = finished_records(everything)
    plans = [replace(counted[cell.group], cell=cell, done=cell.name in done) for cell in everything]
    jobs, threads = jobs_and_threads(config)
    other = problem = None
    if known := _seconds_per_operation(plans, done):
        other = median(known.values())
    elif any(p.trained_weights for p in plans):
        try:
            other = _try_one(plans, threads=threads)
        except UserError as error:
            problem = str(error)
    for i, p in enumerate(plans):
        if (rate := known.get(p.label, other)) and not p.problem:
            plans[i] = replace(p, seconds=p.operations * rate)
    share = cells.at_most() / len(plans)
    left = [p.seconds for p in plans if p.seconds is not None and not p.done]
    return Plan(
        cells=tuple(plans),
        at_most=cells.at_most(),
        jobs=jobs,
        disk_bytes=sum(p.disk_bytes for p in plans) * share if config.keep_weights else 0,
        seconds_left=sum(left) * share / jobs if left else None,
        trial_problem=problem,
    )


def _count(cell: Cell) -> CellPlan:
    label = cell.config.label or cell.config.method
    try:
        setup = Setup.of(cell.config)
    except UserError as error:
        return CellPlan(cell, label, problem=str(error))
    weights = setup.weights
    whole = 0 if setup.method.keeps_backbone else weights.num_backbone_weights
    return CellPlan(
        cell,
        cell.config.label or setup.method.name,
        trained_weights=weights.num_trained_weights,
        budget=weights.budget,
        operations=_operations(setup),
        disk_bytes=4 * (weights.num_new_weights + whole),
    )


def _operations(setup: Setup) -> float:
    config, weights = setup.config, setup.weights
    backbone, new = weights.num_backbone_weights, weights.num_new_weights
    windows = config.context_tokens / config.stride_tokens
    measured = sum(stream.num_tokens for stream in _texts(setup).evaluate) * windows
    per_token = 4 * (backbone + new) + 2 * weights.num_trained_weights
    training = setup.num_tokens * per_token if setup.method.trains_any else 0
    return training + measured * 2 * (2 * backbone + new)


def _texts(setup: Setup) -> RunData:
    """The tokenised texts, without text that the backbone has yet to generate, which would take too
    long."""
    return RunData.of(setup.texts_at_hand, setup.tokenizer)


def _seconds_per_operation(
    plans: Sequence[CellPlan], done: Mapping[str, Record]
) -> dict[str, float]:
    """Label -> seconds per operation, the median over its finished cells."""
    known: dict[str, list[float]] = {}
    for p in plans:
        # The record of a derived cell includes the time of the run that it scales.
        if p.done and p.trained_weights and (seconds := done[p.cell.name].cost.wall_seconds):
            known.setdefault(p.label, []).append(seconds / p.operations)
    return {label: median(values) for label, values in known.items()}


def _try_one(plans: Sequence[CellPlan], *, threads: int) -> float:
    """Seconds per operation, from a trial run of the first cell that trains."""
    p = next(p for p in plans if p.trained_weights)
    trial = run_trial(p.cell.config, num_steps=TRIAL_STEPS, threads=threads)
    seconds = trial.run_seconds(p.cell.config, _texts(Setup.of(p.cell.config)))
    assert seconds is not None  # the trial run has enough steps
    return seconds / p.operations
