"""Tasks with items of our own, in the form that lm-eval takes.

A kind of task is a function that makes a `LocalTask` (`task_files.py`, `cloze.py`); `registry.py`
says which name belongs to which.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.tasks.cache import value_hash

Item = dict[str, Any]

ITEMS, EXAMPLES = "test", "examples"
"""Splits of a local task."""


def perplexity(log_likelihoods: Sequence[float]) -> float:
    """lm-eval's perplexity over whole answers; infinite on overflow."""
    try:
        return math.exp(-sum(log_likelihoods) / len(log_likelihoods))
    except OverflowError:
        return math.inf


SUMMARIES = {"perplexity": {"aggregation": perplexity, "higher_is_better": False}}
"""How metrics are aggregated over items, if not by the mean."""


@dataclass(frozen=True)
class Materials:
    """What items are made from."""

    tokenizer: PreTrainedTokenizerBase  # of both models
    sets: Mapping[str, TokenStream]  # evaluation sets by name
    context_tokens: int  # the longest item, prompt and answer together


@dataclass(frozen=True)
class LocalTask:
    """A task over items in memory."""

    config: dict[str, Any]  # lm-eval's configuration of the task, without its data
    items: list[Item]  # the same and in the same order each time, two or more
    examples: Sequence[Item] = ()  # the split of that name, for few-shot prompts

    @property
    def key(self) -> str:
        """Hash of the items and of the way they are asked."""
        return value_hash([self.config["metadata"], self.items, self.examples])

    @property
    def most_fewshot(self) -> int:
        """Number of examples available for a few-shot prompt; 0 for a task that takes none."""
        if self.config["num_fewshot"] == 0:
            return 0
        return len(self.examples) or len(self.items) - 1


MakeTask = Callable[[Materials], LocalTask]


def task_config(name: str, *, metrics: Sequence[str] = ("acc",), **asked: Any) -> dict[str, Any]:
    """lm-eval's configuration of a local task: multiple choice without few-shot examples, unless
    `asked`, which has lm-eval's keys, says otherwise. `asked` must contain `target_delimiter`,
    which joins prompt and answer."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": ITEMS,
        "num_fewshot": 0,
        "metric_list": [{"metric": metric} | SUMMARIES.get(metric, mean) for metric in metrics],
        "metadata": {"version": 1},
    } | asked
