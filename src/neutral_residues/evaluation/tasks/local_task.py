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
    """What items can be made from.

    Attributes:
        tokenizer: of both models.
        sets: name -> evaluation set.
        context_tokens: the longest item, prompt and answer together.
    """

    tokenizer: PreTrainedTokenizerBase
    sets: Mapping[str, TokenStream]
    context_tokens: int


@dataclass(frozen=True)
class LocalTask:
    """A task over items in memory.

    Attributes:
        config: lm-eval's configuration of the task, without its data.
        items: the same and in the same order each time, two or more.
    """

    config: dict[str, Any]
    items: list[Item]

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
    """The configuration of a task that asks which choice is most likely after the prompt.

    Args:
        choices: with the white space that separates them from the prompt.
        answer: the number of the right choice.
    """
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
