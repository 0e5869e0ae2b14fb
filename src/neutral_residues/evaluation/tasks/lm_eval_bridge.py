"""The one file that talks to lm-eval: tasks are loaded, and both sides answer the very same
requests.

lm-eval's own `evaluate` runs twice over the same task objects, once with the extended model and
once with its backbone, which is the same weights with the extension switched off (or a separate
`reference`). Data are loaded, prompts built and text tokenised once. So every score is the one that
lm-eval gives for that model alone.

lm-eval is imported at the top here, which takes seconds: import this file inside functions.
"""

import contextlib
import copy
import functools
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lm_eval.evaluator
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn

from neutral_residues.errors import UserError, first_line
from neutral_residues.evaluation.evaluate import as_backbone, inference

FEWSHOT_SEED = 1234
"""lm-eval's own, so that prompts are those of its command line."""

Samples = list[dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """What both models answered in one task.

    Attributes:
        backbone: lm-eval's samples of the backbone, one for each item (and filter).
        extended: of the extended model, in the same order.
    """

    backbone: Samples
    extended: Samples


@functools.cache
def task_manager() -> TaskManager:
    """lm-eval's index of its own tasks; read once, which takes seconds."""
    return TaskManager()


def known_tasks() -> frozenset[str]:
    """Every task, group and tag of the installed lm-eval."""
    return frozenset(task_manager().task_index)


def load_named(name: str) -> dict[str, Any]:
    """The tasks behind a name that lm-eval knows (several for a group or tag), with their data.

    Raises:
        UserError: if the data are not on this machine and cannot be fetched, or the task cannot be
            built.
    """
    try:
        with _fixed_seeds():
            return dict(task_manager().load([name])["tasks"])
    except (
        OSError,
        TimeoutError,
    ) as error:  # what datasets and the Hub's client raise without a network
        raise UserError(
            f"the data of task {name} are not on this machine and cannot be fetched",
            got=first_line(error),
            do=(
                "run it once with a network, point HF_HOME at a folder that has them, or leave it"
                " out; tasks that are done are kept"
            ),
        ) from error
    except Exception as error:  # tasks are YAML with code of many authors
        raise UserError(
            f"lm-eval cannot load task {name}", got=first_line(error), do="leave it out"
        ) from error


def load_own(config: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task of ours as lm-eval has it, over items in memory."""
    data = DatasetDict({config["test_split"]: Dataset.from_list([dict(item) for item in items])})
    return {config["task"]: ConfigurableTask(config={**config, "custom_dataset": lambda **_: data})}


class WatchedModel(HFLM):
    """lm-eval's model that keeps tokens from one side to the other, counts what is cut, and tells
    how far it is."""

    _model: Any

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, batch_rows: int, on_rows: Callable[[int], None]
    ) -> None:
        # A copy, because lm-eval may give the tokenizer a padding token.
        super().__init__(
            pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_rows
        )
        self.num_truncated = 0
        self.on_rows = on_rows
        self._tokens: dict[tuple[Any, ...], list[int]] = {}

    @contextlib.contextmanager
    def being(self, model: nn.Module) -> Iterator[None]:
        """Within the block, answers are those of `model`."""
        usual, self._model = self._model, model
        try:
            yield
        finally:
            self._model = usual

    def forget(self) -> None:
        """Another task begins."""
        self.num_truncated = 0
        self._tokens.clear()

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        key = (string, add_special_tokens, left_truncate_len, *sorted(kwargs.items()))
        if key not in self._tokens:
            self._tokens[key] = super().tok_encode(
                string, add_special_tokens, left_truncate_len, **kwargs
            )
        return self._tokens[key]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if left_truncate_len:
            self.num_truncated += sum(
                len(self.tok_encode(string)) > left_truncate_len for string in strings
            )
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, **kwargs)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        """lm-eval cuts a prompt that is too long from its left; of an answer that alone is, its end
        is scored here."""
        longest = self.max_length
        self.num_truncated += sum(
            len(prompt) + len(answer) > longest + 1 for _, prompt, answer in requests
        )
        fitting = [
            (
                (text, answer[-longest - 1 : -longest], answer[-longest:])
                if len(answer) > longest
                else (text, prompt, answer)
            )
            for text, prompt, answer in requests
        ]
        return super()._loglikelihood_tokens(fitting, *args, **kwargs)

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.on_rows(len(inps))
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.on_rows(len(context))
        return super()._model_generate(context, *args, **kwargs)


def build_requests(tasks: Mapping[str, Any], *, num_fewshot: int | None, limit: int | None) -> int:
    """Build the prompts of all tasks, once for both sides; returns how many requests one side will
    answer.

    Args:
        num_fewshot: solved examples; None leaves it to the task, and so does a task whose
            configuration says 0 or that could only draw them from the questions it is asked.
        limit: only the first so many items of each task.
    """
    for task in tasks.values():
        own = task.get_config("num_fewshot")
        wanted = num_fewshot if own != 0 and _has_examples(task) else None
        task.set_config("num_fewshot", (own or 0) if wanted is None else wanted)
        task.set_fewshot_seed(FEWSHOT_SEED)
        with _fixed_seeds(), contextlib.redirect_stderr(io.StringIO()):
            try:
                task.build_all_requests(limit=limit, rank=0, world_size=1)
            except ValueError as error:
                raise UserError(
                    f"task {task.task_name} has no items", got=first_line(error)
                ) from error
        # lm-eval would build them again for the other side, and draw other examples.
        task.build_all_requests = lambda **_: None
    return sum(len(task.instances) for task in tasks.values())


def _has_examples(task: Any) -> bool:
    """Whether a task has a split to draw examples from, besides the one that it is evaluated on."""
    splits = [task.get_config(f"{name}_split") for name in ("fewshot", "training", "validation")]
    evaluated_on = task.get_config("test_split") or task.get_config("validation_split")
    return next((split for split in splits if split), evaluated_on) != evaluated_on


def answer_both(
    lm: WatchedModel,
    tasks: Mapping[str, Any],
    *,
    model: nn.Module,
    reference: nn.Module | None,
    limit: int | None,
) -> tuple[dict[str, Answers], int]:
    """Both models' answers to tasks whose requests are built, and how many prompts were cut."""
    with inference(model, reference):
        with lm.being(model):
            extended = _answers(lm, tasks, limit)
        num_truncated = lm.num_truncated
        with as_backbone(model, reference) as backbone, lm.being(backbone):
            before = _answers(lm, tasks, limit)
    return {name: Answers(before[name], extended[name]) for name in tasks}, num_truncated


def score_of(tasks: Mapping[str, Any], metric: str) -> Callable[[list[Any]], float] | None:
    """How a metric becomes one number over many items; None means that it is their mean."""
    score = next(iter(tasks.values())).aggregation()[metric]
    return None if score is mean else score


def _answers(lm: WatchedModel, tasks: Mapping[str, Any], limit: int | None) -> dict[str, Samples]:
    for task in tasks.values():
        for request in task.instances:
            request.resps, request.filtered_resps = [], {}
    # Its progress bars would cover ours.
    with _fixed_seeds(), contextlib.redirect_stderr(io.StringIO()):
        found: Any = lm_eval.evaluator.evaluate(
            lm=lm,
            task_dict={"tasks": dict(tasks), "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
        )
    return dict(found["samples"])


@contextlib.contextmanager
def _fixed_seeds() -> Iterator[None]:
    """Tasks that draw do so as under lm-eval's own command line; afterwards the generators are
    where they were."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(1234)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1234)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
