"""Measures tasks on the backbone and on the extended model, from one copy of the weights.

Finished tasks are stored (`cache.py`), and not measured again for the same model and settings, so
that an interruption loses one task at most. lm-eval is imported only when needed.

Where we choose: the record contains those of `METRICS` that a task has, except infinite ones (the
perplexity of long answers); figures and sentences use the first. The stored samples have all
metrics. All items of a group of tasks have the same weight.
"""

import contextlib
import json
import logging
import math
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
from neutral_residues.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from neutral_residues.evaluation.tasks.lm_eval_bridge import Answers

METRICS = ("acc_mutual_info", "acc_norm", "acc", "exact_match", "f1", "perplexity")
"""The metrics for the record, in order; for a task that has none of them, its first metric."""
GUESSABLE = ("acc_mutual_info", "acc_norm", "acc")
"""Metrics that are shares of right choices, for which random guessing has an expected score."""
LETTER_ANSWERS = ("mmlu", "belebele", "commonsense")
"""Parts of the names of lm-eval's tasks whose answers are letters; acc_norm, which divides by the
length of the answer, makes no sense for them."""

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the number of sequences done, and their total."""
OnScores = Callable[[list[TaskScore]], None]
"""Called with the scores of a task."""


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are measured."""

    batch_rows: int  # sequences per forward pass
    context_tokens: int  # maximum length of cloze items; other tasks use the model's whole context
    limit: int | None = None  # maximum number of items of each task, the first ones; None: all
    num_fewshot: int | None = None  # few-shot examples before each item; None: as the task says


@dataclass(frozen=True)
class TaskPlan:
    """Tasks that can be measured: their names are known and their data available."""

    tasks: tuple[Task, ...]  # in order; may be empty
    local: Mapping[str, LocalTask]  # by name, those whose items do not come from lm-eval
    missing: tuple[str, ...]  # for each suite, a line about benchmarks that lm-eval does not have
    settings: TaskSettings
    tokenizer: PreTrainedTokenizerBase  # the tokenizer of the extended model
    folder: Path  # where finished tasks are stored
    vocabulary: Vocabulary | None = None  # new tokens of the extended model, if it has any


def plan_tasks(
    names: Sequence[str],
    *,
    settings: TaskSettings,
    tokenizer: PreTrainedTokenizerBase,
    sets: Sequence[TokenStream],
    folder: Path,
    task_data: Path | None = None,
    vocabulary: Vocabulary | None = None,
) -> TaskPlan:
    """Find tasks by name, and load their data once, so that missing data are noticed before a long
    training, not after it.

    The data of an lm-eval task that has a file in `folder` are not loaded: it was measured before,
    perhaps with a network.

    Args:
        names: names of tasks and suites, see `registry.py`.
        tokenizer: the tokenizer of the extended model.
        sets: the evaluation sets from which cloze tasks are made.
        folder: where finished tasks are stored.
        task_data: folder with the user's task files; without `names`, all of them are measured.
        vocabulary: new tokens of the extended model, if it has any.

    Raises:
        UserError: if lm-eval is not installed, a name is unknown, or a task has no data, no
            items, or too few for the few-shot examples.
    """
    names = names or (("files",) if task_data is not None else ())
    if names and not all(map(find_spec, ("lm_eval", "scipy"))):
        do = "pip install neutral-residues[tasks]"
        raise UserError("tasks need lm-eval and scipy", got="not installed", do=do)
    by_name = {stream.name: stream for stream in sets}
    roles = {name: stream.role for name, stream in by_name.items()}
    tasks, missing = find_tasks(names, sets=roles, index=_lm_eval_names, task_data=task_data)
    materials = Materials(tokenizer, by_name, settings.context_tokens)
    local = {task.name: task.make(materials) for task in tasks if task.make is not None}
    for name, task_of_ours in local.items():
        wanted, most = settings.num_fewshot or 0, task_of_ours.most_fewshot
        if wanted > most > 0:
            what = f"task {name} has too few items for few-shot examples"
            raise UserError(what, got=f"{wanted} examples", allowed=f"0 to {most}")
    for task in tasks:
        if task.name not in local and not (folder / f"{task.name}.json").is_file():
            from neutral_residues.evaluation.tasks.lm_eval_bridge import load_named

            with _quiet_lm_eval():
                load_named(task.name)
    return TaskPlan(tuple(tasks), local, tuple(missing), settings, tokenizer, folder, vocabulary)


def measure_tasks(
    model: nn.Module,
    plan: TaskPlan,
    *,
    model_key: str,
    reference: nn.Module | None = None,
    on_progress: OnProgress = lambda name, done, total: None,
    on_scores: OnScores = lambda scores: None,
) -> list[TaskScore]:
    """Measure both models on each task, or read its stored scores.

    Args:
        model: the extended model: a PEFT model, or any model if `reference` is given.
        model_key: hash that identifies the weights; see `weights_key`.
        reference: the backbone, if disabling the extension does not give it.
        on_progress: called in each forward pass, see `OnProgress`.
        on_scores: called after each task whose scores were not stored.

    Returns:
        The scores in the order of tasks; a task may have several, by different metrics.

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
    found: list[TaskScore] = []
    for task in plan.tasks:
        local = plan.local.get(task.name)
        items, num_fewshot = local.key if local else None, _num_fewshot(task, plan)
        own = {"task": task.name, "num_fewshot": num_fewshot, "items": items}
        cache = TaskCache(plan.folder, task.name, identity | own)
        scores = cache.read()
        if scores is None:
            scores, answers = _measure(task, plan, model, reference, on_progress)
            cache.write(scores, sample_lines(answers))
            on_scores(scores)
        asked = {"suite": task.suite, "language": task.language, "role": task.role}
        found += [score.model_copy(update=asked) for score in scores]
    return found


def _num_fewshot(task: Task, plan: TaskPlan) -> int | None:
    asked = plan.settings.num_fewshot
    return task.num_fewshot if asked is None else asked


def _measure(
    task: Task,
    plan: TaskPlan,
    model: nn.Module,
    reference: nn.Module | None,
    on_progress: OnProgress,
) -> tuple[list[TaskScore], dict[str, "Answers"]]:
    """Measure one task. Returns its scores, and name of each of its parts -> both models'
    answers."""
    import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge

    local, limit = plan.local.get(task.name), plan.settings.limit
    with _quiet_lm_eval():
        parts = bridge.load_local(local) if local else bridge.load_named(task.name)
        shots = _num_fewshot(task, plan)
        num_requests = bridge.build_requests(parts, num_fewshot=shots, limit=limit)
        lm = bridge.PairedHFLM(
            model,
            plan.tokenizer,
            batch_rows=plan.settings.batch_rows,
            on_rows=lambda done: on_progress(task.name, done, 2 * num_requests),
            vocabulary=plan.vocabulary,
        )
        try:
            answers = bridge.answer_both(lm, parts, model, reference, limit)
        except Exception as error:
            if local is not None:
                raise
            # The code of a task may need another package, or a judge model.
            what = f"task {task.name} failed inside lm-eval"
            raise UserError(what, got=first_line(error), do="leave it out") from error
    has_letters = local is None and any(part in task.name for part in LETTER_ANSWERS)
    metrics = choose_metrics(task.name, answers, has_letters=has_letters)
    scores = [
        score_task(
            task.name,
            parts,
            answers,
            metric,
            aggregate=bridge.score_of(parts, metric),
            chance=bridge.chance_of(parts, answers) if metric in GUESSABLE else None,
            num_truncated=lm.num_truncated,
        )
        for metric in metrics
    ]
    return [score for score in scores if score is not None], answers


def _lm_eval_names() -> frozenset[str]:
    from neutral_residues.evaluation.tasks.lm_eval_bridge import known_tasks

    return known_tasks()


def choose_metrics(
    task: str, answers: Mapping[str, "Answers"], *, has_letters: bool = False
) -> list[str]:
    """The metrics for the record, main one first, of those that lm-eval has computed for all parts
    of a task. Raises a UserError if the parts have none in common.

    Args:
        task: name of the task, for the error.
        answers: name of each part -> both models' answers.
        has_letters: whether answers are letters, so that acc_norm makes no sense.
    """
    by_part = [pairs[0][1]["metrics"] for pairs in answers.values()]
    names = [metric for metric in by_part[0] if all(metric in metrics for metrics in by_part)]
    if not names:
        what = f"the parts of task {task} have no score in common"
        raise UserError(what, do="name its parts one by one")
    wanted = [metric for metric in METRICS if not (has_letters and metric == "acc_norm")]
    return [metric for metric in wanted if metric in names] or names[:1]


def score_task(
    name: str,
    parts: Mapping[str, Any],
    answers: Mapping[str, "Answers"],
    metric: str,
    *,
    aggregate: Callable[[list[Any]], float] | None,
    chance: float | None,
    num_truncated: int,
) -> TaskScore | None:
    """Scores of both models over all items of all parts of a task, with the interval of their
    difference.

    Args:
        name: name of the task.
        parts: name of each part -> lm-eval's task object.
        answers: name of each part -> both models' answers.
        metric: name of the metric in lm-eval.
        aggregate: computes the score from the metric of each item; None: the mean.
        chance: score of random guessing, if there is one.
        num_truncated: number of prompts that were truncated.

    Returns:
        None if a score is infinite.

    Raises:
        UserError: if there is only one item.
    """
    # If a task filters answers in several ways, the first filter is used.
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
    if not all(map(math.isfinite, (paired.backbone, paired.extended, paired.low, paired.high))):
        return None
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
        chance=chance,
        num_fewshot=max(part.get_config("num_fewshot") or 0 for part in parts.values()),
        num_truncated=num_truncated,
        key=value_hash([metric, items]),
    )


def sample_lines(answers: Mapping[str, "Answers"]) -> Iterator[str]:
    """Yield a line of JSON for each item, with the answers and all metrics of both models."""
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
    """Context without lm-eval's warnings: they are about truncated prompts, which are counted here,
    and about its command line."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
