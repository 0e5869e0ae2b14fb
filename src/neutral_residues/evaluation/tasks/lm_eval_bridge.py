"""The only file that calls lm-eval: loads tasks, and has both models answer the same requests.

lm-eval's own `evaluate` runs twice on the same task objects, once with the extended model and once
with its backbone: the same weights with the extension disabled, or a separate `reference`. Data are
loaded, prompts built and texts tokenised only once. Scores are those that lm-eval gives for each
model alone.

Importing lm-eval takes seconds: import this module inside functions.
"""

import contextlib
import copy
import functools
import io
import random
import statistics
from collections.abc import Callable, Iterator, Mapping
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
from neutral_residues.evaluation.inference import as_backbone, inference, untouched_rows
from neutral_residues.evaluation.possible import possible_tokens
from neutral_residues.evaluation.tasks.local_task import EXAMPLES, ITEMS, LocalTask
from neutral_residues.tuner.routing import temporarily
from neutral_residues.vocabulary.vocabulary import Vocabulary

FEWSHOT_SEED = 1234
"""The default of lm-eval's command line, so that the prompts are the same."""

Tasks = Mapping[str, Any]
"""Name -> lm-eval's task object: a single task, or the parts of a group."""
Sample = dict[str, Any]
"""What lm-eval logs for an item: the item, the answers, and the scores named in "metrics"."""
Answers = list[tuple[Sample, Sample]]
"""(backbone's, extended model's) sample of each item of a task, and for each of its filters."""
TokenRequest = tuple[Any, list[int], list[int]]
"""A request of lm-eval: its texts, the tokens of its prompt, and the tokens of its answer."""


@functools.cache
def task_manager() -> TaskManager:
    """lm-eval's index of its own tasks; cached, because reading it takes seconds."""
    return TaskManager()


def known_tasks() -> frozenset[str]:
    """Names of all tasks, groups and tags of the installed lm-eval."""
    return frozenset(task_manager().task_index)


def load_named(name: str) -> dict[str, Any]:
    """Load the task of this name in lm-eval, or the tasks of a group or tag, with their data.
    Raises a UserError if the data are not available, or a task cannot be built."""
    try:
        with _fixed_seeds():
            return dict(task_manager().load([name])["tasks"])
    except OSError as error:  # raised by datasets and the Hub's client without a network
        what = f"the data of task {name} are not on this machine and cannot be fetched"
        do = "run it once with a network, point HF_HOME at a folder that has them, or leave it out"
        raise UserError(what, got=first_line(error), do=f"{do}; finished tasks are kept") from error
    except Exception as error:  # tasks contain code of many authors
        what = f"lm-eval cannot load task {name}"
        raise UserError(what, got=first_line(error), do="leave it out") from error


def load_local(task: LocalTask) -> dict[str, Any]:
    """A local task as a task object of lm-eval."""
    splits = {ITEMS: task.items} | ({EXAMPLES: task.examples} if task.examples else {})
    data = DatasetDict({split: Dataset.from_list(items) for split, items in splits.items()})
    config = {**task.config, "custom_dataset": lambda **_: data}
    return {config["task"]: ConfigurableTask(config=config)}


class PairedHFLM(HFLM):
    """lm-eval's `HFLM` for the two models of a comparison. It tokenises each text once per
    tokenizer and counts truncated prompts.

    The extended model must answer first. Where all of its gates are exactly 0, its answer is used
    for the backbone too, which is then not run.

    Args:
        model: the extended model.
        tokenizer: the tokenizer of the extended model.
        batch_rows: sequences per forward pass.
        on_rows: called in each forward pass with the number of sequences done so far.
        vocabulary: new tokens of the extended model, if it has any; answers are then scored in
            tokens that it can generate, see `possible.py`.
    """

    _model: Any

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        batch_rows: int,
        on_rows: Callable[[int], None],
        vocabulary: Vocabulary | None = None,
    ) -> None:
        # Copied, because lm-eval may set a padding token.
        tokenizer = copy.deepcopy(tokenizer)
        with inference(model):  # restores the training mode, which lm-eval changes
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_rows)
        self._own_tokenizer = copy.deepcopy(vocabulary.base) if vocabulary else tokenizer
        self._own_tokenizer.pad_token = tokenizer.pad_token
        self._pieces = vocabulary.pieces if vocabulary else []
        self.num_truncated = 0
        self._num_rows = 0
        self._on_rows = on_rows
        self._tokens: dict[tuple[Any, ...], list[int]] = {}
        self._untouched: dict[tuple[Any, ...], Any] = {}  # request -> answer with closed gates
        self._is_backbone = False

    @contextlib.contextmanager
    def using(self, model: nn.Module, *, is_backbone: bool = False) -> Iterator[None]:
        """Context in which `model` answers; the count of truncated prompts restarts at 0."""
        self.num_truncated = 0
        tokenizer = self._own_tokenizer if is_backbone else self.tokenizer
        now = {"_model": model, "tokenizer": tokenizer, "_is_backbone": is_backbone}
        with contextlib.ExitStack() as stack:
            for name, value in now.items():
                stack.enter_context(temporarily([self], name, value))
            yield

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        key = (id(self.tokenizer), string, *args, *sorted(kwargs.items()))
        if key not in self._tokens:
            self._tokens[key] = super().tok_encode(string, *args, **kwargs)
        return self._tokens[key]

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> Any:
        if left_truncate_len:
            lengths = [len(self.tok_encode(string)) for string in strings]
            self.num_truncated += sum(length > left_truncate_len for length in lengths)
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, **kwargs)

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **kwargs: Any) -> Any:
        """As lm-eval, but answers that are longer than the context do not fail: their end is
        scored."""
        if self._pieces and not self._is_backbone:
            requests = list(map(self._possible, requests))
        limit = self.max_length + 1  # the last token is predicted, not read
        lengths = [len(prompt) + len(answer) for _, prompt, answer in requests]
        self.num_truncated += sum(length > limit for length in lengths)
        requests = list(map(self._fitting, requests))
        known = self._untouched if self._is_backbone else {}
        asked = [request for request in requests if _key(request) not in known]
        self._count(len(requests) - len(asked))
        answers = super()._loglikelihood_tokens(asked, *args, **kwargs) if asked else []
        found = dict(zip(map(_key, asked), answers, strict=True))
        if not self._is_backbone:
            self._untouched |= {_key(it): found[_key(it)] for it in asked if self._untouches(it)}
        found |= known
        return [found[_key(request)] for request in requests]

    def _untouches(self, request: TokenRequest) -> bool:
        """Whether all gates stay closed on the text of this request."""
        _, prompt, answer = request
        read = [*prompt, *answer][:-1]
        if not 0 < len(read) <= self.max_length:
            return False
        return bool(untouched_rows(self._model, torch.tensor([read])))

    def _possible(self, request: TokenRequest) -> TokenRequest:
        text, prompt, answer = request
        return text, prompt, possible_tokens(self._model, prompt, answer, self._pieces)

    def _fitting(self, request: TokenRequest) -> TokenRequest:
        text, _, answer = request
        if len(answer) <= self.max_length:
            return request
        # One token before the scored ones is kept: the first of these is predicted from it.
        last, *scored = answer[-self.max_length - 1 :]
        return text, [last], scored

    def _model_call(self, inps: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._count(len(inps))
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self._count(len(context))
        return super()._model_generate(context, *args, **kwargs)

    def _count(self, num_rows: int) -> None:
        self._num_rows += num_rows
        self._on_rows(self._num_rows)


def _key(request: TokenRequest) -> tuple[Any, ...]:
    _, prompt, answer = request
    return tuple(prompt), tuple(answer)


def build_requests(tasks: Tasks, *, num_fewshot: int | None, limit: int | None) -> int:
    """Build the prompts of all tasks, once for both models. Returns the number of requests per
    model.

    Args:
        num_fewshot: few-shot examples; None: as the task says. There are none for a task whose
            configuration says 0, nor for one that could only take them from the items on which it
            is evaluated, unless its configuration asks for that.
        limit: maximum number of items of each task, the first ones; None: all.
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
                what = f"lm-eval cannot make the prompts of task {task.task_name}"
                raise UserError(what, got=first_line(error)) from error
        # lm-eval would build them again for the other model, with other examples.
        task.build_all_requests = lambda **_: None
    return sum(len(task.instances) for task in tasks.values())


def _has_examples(task: Any) -> bool:
    """Whether a task can have few-shot examples: it has another split than the one on which it is
    evaluated, or names its test split for them (lm-eval then leaves out the item itself)."""
    named, test = task.get_config("fewshot_split"), task.get_config("test_split")
    if named is not None and named == test:
        return True
    splits = [named, task.get_config("training_split"), task.get_config("validation_split")]
    evaluated_on = test or task.get_config("validation_split")
    return next((split for split in splits if split), evaluated_on) != evaluated_on


def answer_both(
    lm: PairedHFLM, tasks: Tasks, model: nn.Module, reference: nn.Module | None, limit: int | None
) -> dict[str, Answers]:
    """Have both models answer `tasks`, whose requests are built. Returns task name -> answers."""
    with inference(model, reference):
        with lm.using(model):
            extended = _answers(lm, tasks, limit)
        with as_backbone(model, reference) as backbone, lm.using(backbone, is_backbone=True):
            before = _answers(lm, tasks, limit)
    found = {name: list(zip(before[name], extended[name], strict=True)) for name in tasks}
    same = all(b["doc_hash"] == a["doc_hash"] for pairs in found.values() for b, a in pairs)
    assert same, "both models answer the same items"
    return found


def chance_of(tasks: Tasks, answers: Mapping[str, Answers]) -> float | None:
    """Expected share of right answers of random guessing: the mean over items of 1 / number of
    choices; None unless all tasks are multiple choice."""
    if any(task.OUTPUT_TYPE != "multiple_choice" for task in tasks.values()):
        return None
    items = [(tasks[name], sample["doc"]) for name, pairs in answers.items() for _, sample in pairs]
    return statistics.fmean(1 / len(task.doc_to_choice(item)) for task, item in items)


def score_of(tasks: Tasks, metric: str) -> Callable[[list[Any]], float] | None:
    """The function that aggregates a metric over items; None for the mean."""
    score = next(iter(tasks.values())).aggregation()[metric]
    return None if score is mean else score


def _answers(lm: PairedHFLM, tasks: Tasks, limit: int | None) -> dict[str, list[Sample]]:
    for task in tasks.values():
        for request in task.instances:
            request.resps, request.filtered_resps = [], {}
    # Hides lm-eval's progress bars, which would overwrite ours.
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
    """Context with the seeds of lm-eval's command line; restores the random generators."""
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
