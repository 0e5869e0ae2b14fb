"""Tasks given to backbone and extended model from one copy of the weights; each task, once done, is
kept.

A task whose files are there, whole, of this very model and these settings (`keeping.py`), is not
measured again; so whatever interrupts a list of tasks loses one task at most. Progress is shown;
lm-eval is imported only when needed.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from neutral_residues.config.run import Role
from neutral_residues.data.tokenise import tokenizer_key
from neutral_residues.errors import UserError, first_line
from neutral_residues.evaluation.tasks.cache import Kept, value_hash
from neutral_residues.evaluation.tasks.cloze import cloze_items, cloze_task
from neutral_residues.evaluation.tasks.minimal_pairs import pairs_task, read_pairs
from neutral_residues.evaluation.tasks.registry import PAPER, AskedTask, asked_tasks, paper_suite
from neutral_residues.evaluation.tasks.scoring import choose_metric, sample_lines, score_task
from neutral_residues.results.record import TaskScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neutral_residues.evaluation.evaluate import ScorableText


@dataclass(frozen=True)
class TaskSettings:
    """How tasks are measured.

    Attributes:
        batch_rows: sequences per forward pass.
        context_tokens: longest cloze item; other tasks may fill the model's own context.
        limit: only the first so many items of each task; None takes all.
    """

    batch_rows: int
    context_tokens: int
    limit: int | None = None


def plan_tasks(
    names: Sequence[str],
    *,
    sets: Mapping[str, Role],
    task_data: Path | None = None,
    console: Console | None = None,
) -> list[AskedTask]:
    """The tasks behind names and suites, checked as far as can be without their data; says what a
    suite lacks.

    Args:
        names: as in `suites.py`.
        sets: evaluation set -> role.
        task_data: folder with minimal pairs.

    Raises:
        UserError: if lm-eval is not installed, or a name is unknown.
    """
    if not names:
        return []
    for package in ("lm_eval", "scipy"):
        if find_spec(package) is None:
            raise UserError(
                "tasks need lm-eval and scipy",
                got="not installed",
                do="pip install neutral-residues[tasks]",
            )
    tasks = asked_tasks(names, sets=sets, index=_index, task_data=task_data)
    for name in names:
        if name.startswith(PAPER) and console is not None:
            missing = paper_suite(name.removeprefix(PAPER), _index())[1]
            if missing:
                console.print(f"{name}: lm-eval has no {', '.join(missing)}", highlight=False)
    return tasks


def check_tasks(
    tasks: Sequence[AskedTask],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    settings: TaskSettings,
    streams: Sequence["ScorableText"],
    folder: Path,
) -> None:
    """Raise now what would be raised when a long training is over: data that are not there, sets
    without items.

    A task that has files in `folder` is not looked at: it was measured before, maybe where there
    was a network.

    Raises:
        UserError: as `measure_tasks`.
    """
    by_name = {stream.name: stream for stream in streams}
    for task in tasks:
        if (folder / f"{task.name}.json").is_file():
            continue
        if _own_items(task, tokenizer, by_name, settings) is None:
            from neutral_residues.evaluation.tasks.lm_eval_bridge import load_named

            with _quiet_lm_eval():
                load_named(task.name)


def measure_tasks(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[AskedTask],
    *,
    settings: TaskSettings,
    streams: Sequence["ScorableText"],
    folder: Path,
    model_key: str,
    reference: nn.Module | None = None,
    console: Console | None = None,
) -> list[TaskScore]:
    """Both sides on each task, in order.

    Args:
        model: the extended model: PEFT's, or one that `reference` is given for.
        tasks: from `plan_tasks`.
        streams: the evaluation sets that cloze tasks are made from.
        folder: where finished tasks are kept, and found again.
        model_key: names these very weights; see `weights_key`.
        reference: the backbone, where switching the extension off does not give it.

    Raises:
        UserError: for a task without data or items, or a folder that cannot be written. Finished
            tasks are kept.
    """
    console = console or Console(stderr=True)
    common = {
        "model": model_key,
        "tokenizer": tokenizer_key(tokenizer),
        "dtype": str(next(model.parameters()).dtype),
        "lm_eval": metadata.version("lm-eval"),
        "limit": settings.limit,
    }
    by_name = {stream.name: stream for stream in streams}
    runner = _Runner(model, reference, tokenizer, settings, console)
    own_items = [_own_items(task, tokenizer, by_name, settings) for task in tasks]
    scores = []
    for task, own in zip(tasks, own_items, strict=True):
        kept = Kept(folder, task.name, common | _identity(task, own))
        score = kept.read()
        if score is None:
            score = runner.run(task, own, kept)
        scores.append(
            score.model_copy(
                update={"suite": task.suite, "language": task.language, "role": task.role}
            )
        )
    return scores


def _index() -> frozenset[str]:
    from neutral_residues.evaluation.tasks.lm_eval_bridge import known_tasks

    return known_tasks()


@dataclass(frozen=True)
class _Own:
    """A task of ours: lm-eval's configuration and the items."""

    config: dict[str, Any]
    items: list[dict[str, Any]]


def _own_items(
    task: AskedTask,
    tokenizer: "PreTrainedTokenizerBase",
    streams: Mapping[str, "ScorableText"],
    settings: TaskSettings,
) -> _Own | None:
    if task.kind == "pairs":
        assert task.file is not None
        return _Own(pairs_task(task.name), read_pairs(task.file))
    if task.kind == "cloze":
        assert task.set is not None
        items = cloze_items(streams[task.set], tokenizer, context_tokens=settings.context_tokens)
        return _Own(cloze_task(task.name), items)
    return None


def _identity(task: AskedTask, own: _Own | None) -> dict[str, Any]:
    """What makes a task this task, as far as it is known without lm-eval's data."""
    items = None if own is None else value_hash([own.config["metadata"], own.items])
    return {"task": task.name, "num_fewshot": task.num_fewshot, "items": items}


class _Runner:
    """Measures tasks one after the other; lm-eval and its model are made for the first."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        tokenizer: "PreTrainedTokenizerBase",
        settings: TaskSettings,
        console: Console,
    ) -> None:
        self.model, self.reference, self.tokenizer, self.settings = (
            model,
            reference,
            tokenizer,
            settings,
        )
        # Pinned to its file: lm-eval's progress bars are kept from standard error while it runs.
        self.console = Console(
            file=console.file, quiet=console.quiet, force_terminal=console.is_terminal
        )
        self.lm: Any = None

    def run(self, task: AskedTask, own: _Own | None, kept: Kept) -> TaskScore:
        """Measure one task and keep it."""
        import neutral_residues.evaluation.tasks.lm_eval_bridge as harness

        with _quiet_lm_eval(), self._progress(task.name) as progress:
            parts = (
                harness.load_own(own.config, own.items) if own else harness.load_named(task.name)
            )
            limit = self.settings.limit
            num_requests = harness.build_requests(parts, num_fewshot=task.num_fewshot, limit=limit)
            progress.update(progress.task_ids[0], total=2 * num_requests)
            lm = self._lm(progress)
            try:
                answers, cut = harness.answer_both(
                    lm, parts, model=self.model, reference=self.reference, limit=limit
                )
            except Exception as error:
                if own is not None:
                    raise
                # The code of a task is its author's: it may want another package, or a judge.
                what = f"task {task.name} failed inside lm-eval"
                raise UserError(what, got=first_line(error), do="leave it out") from error
        metric = choose_metric(task, answers)
        score = score_task(
            parts,
            answers,
            metric=metric,
            aggregate=harness.score_of(parts, metric),
            num_truncated=cut,
            name=task.name,
        )
        kept.write(score, list(sample_lines(answers)))
        self._say(score)
        return score

    def _lm(self, progress: Progress) -> Any:
        from neutral_residues.evaluation.evaluate import inference
        from neutral_residues.evaluation.tasks.lm_eval_bridge import WatchedModel

        def on_rows(rows: int) -> None:
            progress.advance(progress.task_ids[0], rows)

        if self.lm is None:
            with inference(self.model):  # making it switches the model to evaluation mode
                self.lm = WatchedModel(
                    self.model, self.tokenizer, batch_rows=self.settings.batch_rows, on_rows=on_rows
                )
        self.lm.forget()
        self.lm.on_rows = on_rows
        return self.lm

    @contextlib.contextmanager
    def _progress(self, name: str) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as progress:
            progress.add_task(name, total=None)
            yield progress

    def _say(self, score: TaskScore) -> None:
        factor = 100 if score.unit == "share" else 1
        cut = f", {score.num_truncated} prompts cut" if score.num_truncated else ""
        self.console.print(
            f"{score.name}: {score.metric} {factor * score.backbone:.4g} ->"
            f" {factor * score.extended:.4g}, {score.num_items} items{cut}",
            highlight=False,
        )


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """What lm-eval would warn of is either counted (cut prompts) or of no use to whoever reads our
    lines."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
