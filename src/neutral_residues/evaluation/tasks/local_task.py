"""Tasks with items that do not come from lm-eval, in the form that lm-eval needs.

Functions in `task_files.py` and `cloze.py` make a `LocalTask`; `registry.py` finds the function for
the name of a task.
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
    """lm-eval's perplexity per answer, from the log-likelihoods of answers in nats; infinite on
    overflow."""
    try:
        return math.exp(-sum(log_likelihoods) / len(log_likelihoods))
    except OverflowError:
        return math.inf


SUMMARIES = {"perplexity": {"aggregation": perplexity, "higher_is_better": False}}
"""Metric -> how it is aggregated over items, for those that are not means."""


@dataclass(frozen=True)
class Materials:
    """What local tasks are made from."""

    tokenizer: PreTrainedTokenizerBase  # the tokenizer of the extended model
    sets: Mapping[str, TokenStream]  # evaluation sets by name
    context_tokens: int  # maximum length of an item, prompt and answer together


@dataclass(frozen=True)
class LocalTask:
    """A task with its items in memory."""

    config: dict[str, Any]  # lm-eval's configuration of the task, without data
    items: list[Item]  # two or more, always the same and in the same order
    examples: Sequence[Item] = ()  # the split for few-shot examples

    @property
    def key(self) -> str:
        """Hash of the items and of the way they are asked (metadata of the configuration)."""
        return value_hash([self.config["metadata"], self.items, self.examples])

    @property
    def most_fewshot(self) -> int:
        """Number of examples available for few-shot prompts; 0 for a task without them."""
        if self.config["num_fewshot"] == 0:
            return 0
        return len(self.examples) or len(self.items) - 1


MakeTask = Callable[[Materials], LocalTask]


def task_config(name: str, *, metrics: Sequence[str] = ("acc",), **asked: Any) -> dict[str, Any]:
    """lm-eval's configuration of a local task: multiple choice without few-shot examples, changed
    by `asked` (keys of lm-eval). `asked` must contain `target_delimiter`, the text between prompt
    and answer."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": ITEMS,
        "num_fewshot": 0,
        "metric_list": [{"metric": metric} | SUMMARIES.get(metric, mean) for metric in metrics],
        "metadata": {"version": 1},
    } | asked
