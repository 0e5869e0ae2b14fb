"""Tasks whose items are made here, as lm-eval takes them.

A kind of task is a function that makes a `LocalTask` (`minimal_pairs.py`, `cloze.py`);
`registry.py` says which name belongs to which.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.tasks.cache import value_hash

Item = dict[str, Any]


@dataclass(frozen=True)
class Materials:
    """What items can be made from."""

    tokenizer: PreTrainedTokenizerBase  # of both models
    sets: Mapping[str, TokenStream]  # evaluation sets by name
    context_tokens: int  # the longest item, prompt and answer together


@dataclass(frozen=True)
class LocalTask:
    """A task over items in memory."""

    config: dict[str, Any]  # lm-eval's configuration of the task, without its data
    items: list[Item]  # the same and in the same order each time, two or more

    @property
    def key(self) -> str:
        """Hash of the items and of how they are asked."""
        return value_hash([self.config["metadata"], self.items])


MakeTask = Callable[[Materials], LocalTask]


def multiple_choice(
    name: str,
    *,
    prompt: str | Callable[[Item], str],
    choices: Callable[[Item], Sequence[str]],
    answer: int | Callable[[Item], int],
    metrics: Sequence[str] = ("acc",),
) -> dict[str, Any]:
    """The configuration of a task that asks which choice is most likely after the prompt; choices
    begin with the white space between, `answer` is the number of the right one."""
    mean = {"aggregation": "mean", "higher_is_better": True}
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": prompt,
        "target_delimiter": "",
        "doc_to_choice": choices,
        "doc_to_target": answer,
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, **mean} for metric in metrics],
        "metadata": {"version": 1},
    }
