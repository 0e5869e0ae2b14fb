"""Measures a list of tasks on the backbone and on the extended model, from one copy of the weights.

Each finished task is stored (`cache.py`) and not measured again for the same model and settings, so
an interrupted list loses one task at most. lm-eval is imported only when needed.

Where we choose: the record gets those of `METRICS` that a task has, the first of them for pictures
and sentences, unless one is infinite (the perplexity of long answers); the stored samples have all.
In a group of tasks all items count alike.
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
"""The metrics for the record, as far as a task has them; otherwise the task's first one."""
GUESSABLE = ("acc_mutual_info", "acc_norm", "acc")
"""Shares of right choices, which have a chance level."""
LETTER_ANSWERS = ("mmlu", "belebele", "commonsense")
"""lm-eval's tasks whose answers are letters: acc_norm would divide by the length of a letter."""

OnProgress = Callable[[str, int, int], None]
"""Called with the name of a task, the number of sequences done, and their total."""
OnScores = Callable[[list[TaskScore]], None]
"""Called with the scores of a task."""


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are measured."""

    batch_rows: int  # sequences per forward pass
    context_tokens: int  # longest cloze item; other tasks may use the model's whole context
    limit: int | None = None  # first items of each task to take; None takes all
    num_fewshot: int | None = None  # solved examples before each item; None leaves it to the task


@dataclass(frozen=True)
class TaskPlan:
    """Tasks that can be measured: their names are known and their data available."""

    tasks: tuple[Task, ...]  # in order; may be empty
    local: Mapping[str, LocalTask]  # those of them that are made of items of ours, by name
    missing: tuple[str, ...]  # benchmarks of a suite that lm-eval lacks, a line for each suite
    settings: TaskSettings
    tokenizer: PreTrainedTokenizerBase  # of both models, or of the extended one
    folder: Path  # where finished tasks are stored
    vocabulary: Vocabulary | None = None  # the extended model's own


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
    """Find the tasks behind names and suites, and load their data once: what is missing must show
    before a long training, not after it.

    The data of an lm-eval task that has a file in `folder` are not checked: it was measured before,
    perhaps with a network.

    Args:
        names: see `registry.py`.
        sets: the evaluation sets that cloze tasks are made from.
        folder: where finished tasks are stored, and found again.
        task_data: folder with task files; without names, all of them.
        vocabulary: the extended model's own, if it has one; `tokenizer` is then that.

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
    """Both models on each task, in order; a task may have several scores.

    Args:
        model: the extended model: PEFT's, or any model if `reference` is given.
        model_key: identifies these weights; see `weights_key`.
        reference: the backbone, if disabling the extension does not give it.
        on_scores: called after each task that was measured now.

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
    """Measure one task: its scores, and both models' answers to each of its parts."""
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
            # A task's code is its author's: it may need another package, or a judge model.
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
    """The metrics for the record, the most telling first, of those that lm-eval has computed for
    every part; a UserError if the parts of a group have none in common."""
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
    """Both models' scores over all items of all parts of a task, and the paired difference; None
    where one is infinite. A UserError if there is one item only. `aggregate` makes one number of
    many items' metrics; None means their mean."""
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
    """Silences lm-eval's warnings: truncated prompts are counted here, the rest is about its
    command line."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
