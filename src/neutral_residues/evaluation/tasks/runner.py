"""Measures a list of tasks on the backbone and on the extended model, from one copy of the weights.

Each finished task is stored (`cache.py`) and not measured again for the same model and settings, so
an interrupted list loses one task at most. lm-eval is imported only when needed.

Where we choose: the record gets one score of a task, the first of `METRICS` that it has; the stored
samples have all. In a group of tasks all items count alike.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import tokenizer_key
from neutral_residues.errors import UserError, first_line
from neutral_residues.evaluation.tasks.cache import TaskCache, value_hash
from neutral_residues.evaluation.tasks.local_task import LocalTask, Materials
from neutral_residues.evaluation.tasks.paired_statistics import paired_means, paired_scores
from neutral_residues.evaluation.tasks.registry import Task, find_tasks
from neutral_residues.results.record import TaskScore

if TYPE_CHECKING:
    from neutral_residues.evaluation.tasks.lm_eval_bridge import Answers

METRICS = ("acc_mutual_info", "acc_norm", "acc", "exact_match", "f1")
"""The first of these that a task has goes into the record; otherwise the task's own first."""
LETTER_ANSWERS = ("mmlu", "belebele", "commonsense")
"""Tasks whose answers are letters: acc_norm would divide by the length of a letter."""

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the sequences done, and all of them."""
OnScore = Callable[[TaskScore], None]


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are measured."""

    batch_rows: int  # sequences per forward pass
    context_tokens: int  # longest cloze item; other tasks may use the model's whole context
    limit: int | None = None  # first items of each task to take; None takes all


@dataclass(frozen=True)
class TaskPlan:
    """Tasks that can be measured: their names are known and their data available."""

    tasks: tuple[Task, ...]  # in order; may be empty
    local: Mapping[str, LocalTask]  # those of them that are made of items of ours, by name
    missing: tuple[str, ...]  # benchmarks of a suite that lm-eval lacks, a line for each suite
    settings: TaskSettings
    tokenizer: PreTrainedTokenizerBase  # of both models
    folder: Path  # where finished tasks are stored


def plan_tasks(
    names: Sequence[str],
    *,
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[TokenStream],
    folder: Path,
    task_data: Path | None = None,
) -> TaskPlan:
    """Find the tasks behind names and suites, and load their data once: what is missing must show
    before a long training, not after it.

    The data of an lm-eval task that has a file in `folder` are not checked: it was measured before,
    perhaps with a network.

    Args:
        names: see `registry.py`.
        sets: the evaluation sets that cloze tasks are made from.
        folder: where finished tasks are stored, and found again.
        task_data: folder with minimal pairs.

    Raises:
        UserError: if lm-eval is not installed, a name is unknown, or a task has no data or items.
    """
    if names and not all(map(find_spec, ("lm_eval", "scipy"))):
        do = "pip install neutral-residues[tasks]"
        raise UserError("tasks need lm-eval and scipy", got="not installed", do=do)
    by_name = {stream.name: stream for stream in sets}
    roles = {name: stream.role for name, stream in by_name.items()}
    tasks, missing = find_tasks(names, sets=roles, index=_lm_eval_names, task_data=task_data)
    materials = Materials(tokenizer, by_name, settings.context_tokens)
    local = {task.name: task.make(materials) for task in tasks if task.make is not None}
    for task in tasks:
        if task.name not in local and not (folder / f"{task.name}.json").is_file():
            from neutral_residues.evaluation.tasks.lm_eval_bridge import load_named

            with _quiet_lm_eval():
                load_named(task.name)
    return TaskPlan(tuple(tasks), local, tuple(missing), settings, tokenizer, folder)


def measure_tasks(
    model: nn.Module,
    plan: TaskPlan,
    *,
    model_key: str,
    reference: nn.Module | None = None,
    on_progress: OnProgress = lambda name, done, total: None,
    on_score: OnScore = lambda score: None,
) -> list[TaskScore]:
    """Both models on each task, in order.

    Args:
        model: the extended model: PEFT's, or any model if `reference` is given.
        model_key: identifies these weights; see `weights_key`.
        reference: the backbone, where switching the extension off does not give it.
        on_score: called after each task that was measured now.

    Raises:
        UserError: for a task without data, or a folder that cannot be written.
    """
    identity = {
        "model": model_key,
        "tokenizer": tokenizer_key(plan.tokenizer),
        "dtype": str(next(model.parameters()).dtype),
        "lm_eval": metadata.version("lm-eval"),
        "limit": plan.settings.limit,
    }
    scores = []
    for task in plan.tasks:
        local = plan.local.get(task.name)
        items = local.key if local else None
        own = {"task": task.name, "num_fewshot": task.num_fewshot, "items": items}
        cache = TaskCache(plan.folder, task.name, identity | own)
        score = cache.read()
        if score is None:
            score, answers = _measure(task, plan, model, reference, on_progress)
            cache.write(score, sample_lines(answers))
            on_score(score)
        asked = {"suite": task.suite, "language": task.language, "role": task.role}
        scores.append(score.model_copy(update=asked))
    return scores


def _measure(
    task: Task,
    plan: TaskPlan,
    model: nn.Module,
    reference: nn.Module | None,
    on_progress: OnProgress,
) -> tuple[TaskScore, dict[str, "Answers"]]:
    """The score of a task, and both models' answers to each of its parts."""
    import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge

    local, limit = plan.local.get(task.name), plan.settings.limit
    with _quiet_lm_eval():
        parts = bridge.load_local(local) if local else bridge.load_named(task.name)
        num_requests = bridge.build_requests(parts, num_fewshot=task.num_fewshot, limit=limit)
        lm = bridge.PairedHFLM(
            model,
            plan.tokenizer,
            batch_rows=plan.settings.batch_rows,
            on_rows=lambda done: on_progress(task.name, done, 2 * num_requests),
        )
        try:
            answers = bridge.answer_both(lm, parts, model, reference, limit)
        except Exception as error:
            if local is not None:
                raise
            # The code of a task is its author's: it may need another package, or a judge.
            what = f"task {task.name} failed inside lm-eval"
            raise UserError(what, got=first_line(error), do="leave it out") from error
    metric = choose_metric(task.name, answers)
    aggregate = bridge.score_of(parts, metric)
    return score_task(task.name, parts, answers, metric, aggregate, lm.num_truncated), answers


def _lm_eval_names() -> frozenset[str]:
    from neutral_residues.evaluation.tasks.lm_eval_bridge import known_tasks

    return known_tasks()


def choose_metric(task: str, answers: Mapping[str, "Answers"]) -> str:
    """The metric for the record, of those that lm-eval has computed for every part; a UserError if
    the parts of a group have none in common."""
    by_part = [pairs[0][1]["metrics"] for pairs in answers.values()]
    names = [metric for metric in by_part[0] if all(metric in metrics for metrics in by_part)]
    if not names:
        what = f"the parts of task {task} have no score in common"
        raise UserError(what, do="name its parts one by one")
    has_letters = any(part in task for part in LETTER_ANSWERS)
    order = [metric for metric in METRICS if not (has_letters and metric == "acc_norm")]
    return next((metric for metric in order if metric in names), names[0])


def score_task(
    name: str,
    parts: Mapping[str, Any],
    answers: Mapping[str, "Answers"],
    metric: str,
    aggregate: Callable[[list[Any]], float] | None,
    num_truncated: int,
) -> TaskScore:
    """Both models' scores over all items of all parts of a task, and the paired difference; a
    UserError if there is one item only. `aggregate` makes one number of many items' metrics; None
    means their mean."""
    # Where a task filters answers in several ways, the first counts.
    pairs = [
        (before, after)
        for found in answers.values()
        for before, after in found
        if after["filter"] == found[0][1]["filter"]
    ]
    if len(pairs) < 2:
        do = "raise the limit, or leave the task out"
        raise UserError(f"task {name} has one item only", do=do)
    before, after = [b[metric] for b, _ in pairs], [a[metric] for _, a in pairs]
    paired = paired_scores(before, after, aggregate) if aggregate else paired_means(before, after)
    is_share = aggregate is None and {*before, *after} <= {0, 1}
    higher_is_better = next(iter(parts.values())).higher_is_better()[metric]
    items = [[s["doc_hash"], s["prompt_hash"], s["target_hash"]] for s, _ in pairs]
    return TaskScore(
        name=name,
        metric=metric,
        unit="share" if is_share else "score",
        direction="higher" if higher_is_better else "lower",
        num_items=len(pairs),
        **paired._asdict(),
        difference=paired.difference,
        num_fewshot=max(part.get_config("num_fewshot") or 0 for part in parts.values()),
        num_truncated=num_truncated,
        key=value_hash([metric, items]),
    )


def sample_lines(answers: Mapping[str, "Answers"]) -> Iterator[str]:
    """Every item with both models' answers and all their scores, as JSON."""
    for name, pairs in answers.items():
        for before, after in pairs:
            line = {"task": name, "filter": after["filter"]}
            line |= {"item": after["doc"], "target": after["target"]}
            for model, sample in (("backbone", before), ("extended", after)):
                scores = {metric: sample[metric] for metric in sample["metrics"]}
                line[model] = scores | {"answers": sample["filtered_resps"]}
            yield json.dumps(line, ensure_ascii=False, default=str)


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """No warnings of lm-eval: truncated prompts are counted, the rest is about its command line."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
