"""Tasks given to backbone and extended model from one copy of the weights; each task, once done, is kept.

For every task two files appear in the folder that keeps them, whole or not at all:

    NAME.jsonl     one line for each item: the item, both models' answers and scores
    NAME.json      its scores for the record, what they were measured on, and the hash of the other file

A task whose files are there, whole, of this very model and these settings, is not measured again; so whatever
interrupts a list of tasks loses one task at most. Progress is shown; lm-eval is imported only when needed.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from neutral_residues.config import Role
from neutral_residues.data.encoding import tokenizer_key
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, write_json, write_text
from neutral_residues.record import TaskScore
from neutral_residues.tasks.cloze import Documents, cloze_items, cloze_task
from neutral_residues.tasks.paired import paired_means, paired_scores
from neutral_residues.tasks.pairs import pairs_task, read_pairs
from neutral_residues.tasks.suites import PAPER, AskedTask, asked_tasks, paper_suite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

METRICS = ("acc_mutual_info", "acc_norm", "acc", "exact_match", "f1")
"""The first that a task has is the one of the record; else the task's own first. The files keep all."""
BY_LETTER = ("mmlu", "belebele", "commonsense")
"""Where the answers are letters, acc_norm would divide by the length of a letter: acc is the usual score."""


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
    names: Sequence[str], *, sets: Mapping[str, Role], task_data: Path | None = None, console: Console | None = None
) -> list[AskedTask]:
    """The tasks behind names and suites, checked as far as can be without their data; says what a suite lacks.

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
                "tasks need lm-eval and scipy", got="not installed", do="pip install neutral-residues[tasks]"
            )
    tasks = asked_tasks(names, sets=sets, index=_index, task_data=task_data)
    for name in names:
        if name.startswith(PAPER) and console is not None:
            missing = paper_suite(name.removeprefix(PAPER), _index())[1]
            if missing:
                console.print(f"{name}: lm-eval has no {', '.join(missing)}", highlight=False)
    return tasks


def measure_tasks(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Sequence[AskedTask],
    *,
    settings: TaskSettings,
    streams: Sequence[Documents],
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
        UserError: for a task without data or items, or a folder that cannot be written. Finished tasks are kept.
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
    scores = []
    for task in tasks:
        own = _own_items(task, tokenizer, by_name, settings)
        kept = _Kept(folder, task.name, common | _identity(task, own))
        score = kept.read()
        if score is None:
            score = runner.run(task, own, kept)
        scores.append(score.model_copy(update={"suite": task.suite, "language": task.language, "role": task.role}))
    return scores


def weights_key(folder: Path, backbone: str, revision: str | None = None) -> str:
    """Names an extended model: hash of the weight files in `folder` and of the backbone's name and revision."""
    digest = hashlib.sha256(f"{backbone}@{revision}".encode())
    with disk_errors(folder):
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _index() -> frozenset[str]:
    from neutral_residues.tasks.harness import known_tasks

    return known_tasks()


@dataclass(frozen=True)
class _Own:
    """A task of ours: lm-eval's configuration and the items."""

    config: dict[str, Any]
    items: list[dict[str, Any]]


def _own_items(
    task: AskedTask, tokenizer: "PreTrainedTokenizerBase", streams: Mapping[str, Documents], settings: TaskSettings
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
    items = None if own is None else _hash([own.config["metadata"], own.items])
    return {"task": task.name, "num_fewshot": task.num_fewshot, "items": items}


@dataclass(frozen=True)
class _Kept:
    """The two files of a finished task."""

    folder: Path
    name: str
    identity: dict[str, Any]

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def samples(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def read(self) -> TaskScore | None:
        """The score, if both files are there, whole, and of this very task and model."""
        try:
            found = json.loads(self.summary.read_text(encoding="utf-8"))
            whole = found["samples_sha256"] == hashlib.sha256(self.samples.read_bytes()).hexdigest()
            return TaskScore.model_validate(found["score"]) if whole and found["of"] == self.identity else None
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def write(self, score: TaskScore, lines: Sequence[str]) -> None:
        """The samples first: without the other file they do not count."""
        text = "".join(f"{line}\n" for line in lines)
        write_text(self.samples, text)
        sealed = hashlib.sha256(text.encode()).hexdigest()
        write_json(
            self.summary, {"of": self.identity, "samples_sha256": sealed, "score": score.model_dump(mode="json")}
        )


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
        self.model, self.reference, self.tokenizer, self.settings = model, reference, tokenizer, settings
        # Pinned to its file: lm-eval's progress bars are kept from standard error while it runs.
        self.console = Console(file=console.file, quiet=console.quiet, force_terminal=console.is_terminal)
        self.lm: Any = None

    def run(self, task: AskedTask, own: _Own | None, kept: _Kept) -> TaskScore:
        """Measure one task and keep it."""
        import neutral_residues.tasks.harness as harness

        with _quiet_lm_eval(), self._progress(task.name) as progress:
            parts = harness.load_own(own.config, own.items) if own else harness.load_named(task.name)
            limit = self.settings.limit
            num_requests = harness.build_requests(parts, num_fewshot=task.num_fewshot, limit=limit)
            progress.update(progress.task_ids[0], total=2 * num_requests)
            lm = self._lm(progress)
            answers, cut = harness.answer_both(lm, parts, model=self.model, reference=self.reference, limit=limit)
        metric = _metric(task, answers)
        score = _score(task, parts, answers, metric, cut)
        kept.write(score, list(_sample_lines(answers)))
        self._say(score)
        return score

    def _lm(self, progress: Progress) -> Any:
        from neutral_residues.evaluate import inference
        from neutral_residues.tasks.harness import WatchedModel

        def on_rows(rows: int) -> None:
            progress.advance(progress.task_ids[0], rows)

        if self.lm is None:
            with inference(self.model):  # making it switches the model to evaluation mode
                self.lm = WatchedModel(self.model, self.tokenizer, batch_rows=self.settings.batch_rows, on_rows=on_rows)
        self.lm.forget()
        self.lm.on_rows = on_rows
        return self.lm

    @contextlib.contextmanager
    def _progress(self, name: str) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            progress.add_task(name, total=None)
            yield progress

    def _say(self, score: TaskScore) -> None:
        factor = 100 if score.unit == "share" else 1
        cut = f", {score.num_truncated} prompts cut" if score.num_truncated else ""
        self.console.print(
            f"{score.name}: {score.metric} {factor * score.backbone:.4g} -> {factor * score.extended:.4g}, "
            f"{score.num_items} items{cut}",
            highlight=False,
        )


def _metric(task: AskedTask, answers: Mapping[str, Any]) -> str:
    names = next(iter(answers.values())).extended[0]["metrics"]
    order = [m for m in METRICS if m != "acc_norm"] if any(part in task.name for part in BY_LETTER) else METRICS
    return next((metric for metric in order if metric in names), names[0])


def _score(
    task: AskedTask, parts: Mapping[str, Any], answers: Mapping[str, Any], metric: str, num_truncated: int
) -> TaskScore:
    from neutral_residues.tasks.harness import score_of

    pairs = [pair for found in answers.values() for pair in _first_filter(found)]
    if len(pairs) < 2:
        raise UserError(f"task {task.name} has one item only", do="raise the limit, or leave the task out")
    before, after = ([pair[side][metric] for pair in pairs] for side in (0, 1))
    aggregate = score_of(parts, metric)
    paired = paired_scores(before, after, aggregate) if aggregate else paired_means(before, after)
    first = next(iter(parts.values()))
    is_share = aggregate is None and {*before, *after} <= {0, 1}
    return TaskScore(
        name=task.name,
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
        key=_hash([metric, [[s["doc_hash"], s["prompt_hash"], s["target_hash"]] for s, _ in pairs]]),
    )


def _first_filter(found: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(backbone's, extended model's) sample of each item; where a task filters answers in several ways, the first."""
    name = found.extended[0]["filter"]
    for before, after in zip(found.backbone, found.extended, strict=True):
        assert before["doc_hash"] == after["doc_hash"], "both sides answer the same items"
        if after["filter"] == name:
            yield before, after


def _sample_lines(answers: Mapping[str, Any]) -> Iterator[str]:
    for name, found in answers.items():
        for before, after in zip(found.backbone, found.extended, strict=True):
            line = {"task": name, "filter": after["filter"], "item": after["doc"], "target": after["target"]}
            for side, sample in (("backbone", before), ("extended", after)):
                line[side] = {m: sample[m] for m in sample["metrics"]} | {"answers": sample["filtered_resps"]}
            yield json.dumps(line, ensure_ascii=False, default=str)


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@contextlib.contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """What lm-eval would warn of is either counted (cut prompts) or of no use to whoever reads our lines."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
