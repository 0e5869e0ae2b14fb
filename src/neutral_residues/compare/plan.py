"""What a comparison would do, before it starts: cells, weights, disk and time.

Counted: cells, weights, disk. Estimated: time, from finished cells of the same label, else of
others, else from a trial run of one cell. Between cells it is scaled by floating-point operations:
with N backbone weights, R new ones and T that train, a training token takes 2 (N + R) forward,
2 (N + R) back to the activations and 2 T for the gradients; a measured token, on backbone and
extended model, 2 (2 N + R).
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
    """What one cell costs."""

    cell: Cell
    label: str  # as its record will have it
    problem: str | None = None  # why it cannot run, in one line; the numbers are 0 then
    trained_weights: int = 0  # with a gradient
    budget: float = 0.0  # new weights as a share of the backbone's
    operations: float = 0.0  # floating-point, of training and of measuring at the end
    disk_bytes: int = 0  # of the saved weights
    seconds: float | None = None  # estimated; None where nothing is known
    done: bool = False  # it is finished already


@dataclass(frozen=True)
class Plan:
    """What a comparison costs."""

    cells: tuple[CellPlan, ...]  # all that may run
    at_most: int  # how many will run; tuning runs fewer than all
    jobs: int  # how many run at the same time
    disk_bytes: float  # of all weights that are kept
    seconds_left: float | None  # estimated; None where nothing is known or left
    trial_problem: str | None = None  # why the trial run failed, where it did

    @property
    def num_done(self) -> int:
        """Finished cells."""
        return sum(plan.done for plan in self.cells)


def plan(config: CompareConfig) -> Plan:
    """Count the cells of a comparison and estimate their time; what is tokenised for that stays in
    the cache. A UserError for whatever would stop the comparison before it starts."""
    cells = expand(config)
    everything = [*cells.trained, *cells.derived]
    # Learning rate and seed change no count: one cell of each group.
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
    """As tokens, without what the backbone has still to write: that takes too long for a plan."""
    return RunData.of(setup.texts_at_hand, setup.tokenizer)


def _seconds_per_operation(
    plans: Sequence[CellPlan], done: Mapping[str, Record]
) -> dict[str, float]:
    """Label -> median over its finished cells."""
    known: dict[str, list[float]] = {}
    for p in plans:
        # What a weight average records is the time of the fine-tuning behind it too.
        if p.done and p.trained_weights and (seconds := done[p.cell.name].cost.wall_seconds):
            known.setdefault(p.label, []).append(seconds / p.operations)
    return {label: median(values) for label, values in known.items()}


def _try_one(plans: Sequence[CellPlan], *, threads: int) -> float:
    """Seconds per operation, from a trial run of the first cell that trains."""
    p = next(p for p in plans if p.trained_weights)
    trial = run_trial(p.cell.config, num_steps=TRIAL_STEPS, threads=threads)
    seconds = trial.run_seconds(p.cell.config, _texts(Setup.of(p.cell.config)))
    assert seconds is not None  # enough steps were tried
    return seconds / p.operations
