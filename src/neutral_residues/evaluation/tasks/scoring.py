"""From the answers of both models to what a record says of a task.

Where we choose: one score of a task goes into the record, the first of `METRICS` that it has; the
kept files have all. In a group of tasks all items count alike. No torch.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.cache import value_hash
from neutral_residues.evaluation.tasks.paired_statistics import paired_means, paired_scores
from neutral_residues.evaluation.tasks.registry import AskedTask
from neutral_residues.results.record import TaskScore

METRICS = ("acc_mutual_info", "acc_norm", "acc", "exact_match", "f1")
"""The first that a task has is the one of the record; else the task's own first. The files keep
all."""
BY_LETTER = ("mmlu", "belebele", "commonsense")
"""Where the answers are letters, acc_norm would divide by the length of a letter: acc is the usual
score."""


def choose_metric(task: AskedTask, answers: Mapping[str, Any]) -> str:
    """The score of the record, of those that lm-eval has computed for every part.

    Raises:
        UserError: if the parts of a group have no score in common.
    """
    by_part = [found.extended[0]["metrics"] for found in answers.values()]
    names = [metric for metric in by_part[0] if all(metric in metrics for metrics in by_part)]
    if not names:
        raise UserError(
            f"the parts of task {task.name} have no score in common", do="name its parts singly"
        )
    order = (
        [m for m in METRICS if m != "acc_norm"]
        if any(part in task.name for part in BY_LETTER)
        else METRICS
    )
    return next((metric for metric in order if metric in names), names[0])


def score_task(
    parts: Mapping[str, Any],
    answers: Mapping[str, Any],
    *,
    name: str,
    metric: str,
    aggregate: Callable[[list[Any]], float] | None,
    num_truncated: int,
) -> TaskScore:
    """Both models' scores over all items of all parts of a task, and the paired difference.

    Args:
        parts: name -> lm-eval's task.
        answers: name -> `harness.Answers`.
        aggregate: how the metric becomes one number over many items; None means that it is their
            mean.
        num_truncated: prompts that were cut.

    Raises:
        UserError: if there is one item only.
    """
    pairs = [pair for found in answers.values() for pair in _first_filter(found)]
    if len(pairs) < 2:
        raise UserError(
            f"task {name} has one item only", do="raise the limit, or leave the task out"
        )
    before, after = ([pair[side][metric] for pair in pairs] for side in (0, 1))
    paired = paired_scores(before, after, aggregate) if aggregate else paired_means(before, after)
    first = next(iter(parts.values()))
    is_share = aggregate is None and {*before, *after} <= {0, 1}
    return TaskScore(
        name=name,
        metric=metric,
        unit="share" if is_share else "score",
        direction="higher" if first.higher_is_better()[metric] else "lower",
        num_items=len(pairs),
        backbone=paired.backbone,
        extended=paired.extended,
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        p_value=paired.p_value,
        interval=paired.interval,
        num_fewshot=max(part.get_config("num_fewshot") or 0 for part in parts.values()),
        num_truncated=num_truncated,
        key=value_hash(
            [metric, [[s["doc_hash"], s["prompt_hash"], s["target_hash"]] for s, _ in pairs]]
        ),
    )


def _first_filter(found: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(backbone's, extended model's) sample of each item; where a task filters answers in several
    ways, the first."""
    name = found.extended[0]["filter"]
    for before, after in zip(found.backbone, found.extended, strict=True):
        assert before["doc_hash"] == after["doc_hash"], "both sides answer the same items"
        if after["filter"] == name:
            yield before, after


def sample_lines(answers: Mapping[str, Any]) -> Iterator[str]:
    """Every item with both models' answers and all their scores, as JSON."""
    for name, found in answers.items():
        for before, after in zip(found.backbone, found.extended, strict=True):
            line = {
                "task": name,
                "filter": after["filter"],
                "item": after["doc"],
                "target": after["target"],
            }
            for side, sample in (("backbone", before), ("extended", after)):
                line[side] = {m: sample[m] for m in sample["metrics"]} | {
                    "answers": sample["filtered_resps"]
                }
            yield json.dumps(line, ensure_ascii=False, default=str)
