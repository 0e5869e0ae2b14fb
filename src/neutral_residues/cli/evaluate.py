"""`neutral evaluate`: a saved extension and its backbone, measured on text and on tasks."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from neutral_residues.cli.tables import print_few_tokens, sides_table, tasks_table
from neutral_residues.config.run import Corpus, EvaluationSettings, RunConfig
from neutral_residues.data.run_data import RunData
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import end_of_text_id, tokenise, tokenizer_key
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.evaluation.tasks.runner import (
    TaskPlan,
    TaskSettings,
    measure_tasks,
    plan_tasks,
)
from neutral_residues.evaluation.windows import Windows
from neutral_residues.files import default_cache_folder
from neutral_residues.results.record import Record, TaskScore
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.set_result import SetResult
from neutral_residues.results.store import provenance, read_record, write_record
from neutral_residues.training.progress import RunProgress, TaskDisplay

DEFAULT_CONTEXT_TOKENS = 512


@dataclass(frozen=True)
class TaskOptions:
    """Tasks to give to a saved extension; empty names mean none.

    Attributes:
        names: tasks and suites, see `tasks/registry.py`.
        limit: only the first so many items of each.
        data: folder with minimal pairs.
        into_record: whether the finished run's own record takes the scores.
    """

    names: tuple[str, ...] = ()
    limit: int | None = None
    data: Path | None = None
    into_record: bool = False

    def check(self, folder: Path) -> None:
        """Raise for options that would do nothing."""
        given = {
            "--limit": self.limit,
            "--task-data": self.data,
            "--into-record": self.into_record or None,
        }
        useless = [name for name, value in given.items() if value is not None]
        if useless and not self.names:
            raise UserError(
                f"{useless[0]} goes with --tasks", do="name tasks, for example --tasks quick"
            )
        if self.limit is not None and self.limit < 2:
            raise UserError("--limit", got=self.limit, allowed="2 or more")
        if self.into_record and not RunFolder(folder).is_finished:
            raise UserError(
                f"--into-record needs a finished run; {folder} has no record.json",
                do="use --output",
            )


def evaluate_folder(
    folder: Path,
    *,
    sets: tuple[str, ...],
    context: int | None,
    stride: int | None,
    output: Path | None,
    kl: bool = False,
    tasks: TaskOptions = TaskOptions(),
    console: Console | None = None,
) -> Record:
    """Measure a saved extension and its backbone in one pass; print both sides, and write the
    record if asked.

    Raises:
        UserError: for whatever the user can mend; what can be checked before measuring is.
    """
    console = console or Console()
    corpora = [_corpus(text) for text in sets]
    tasks.check(folder)
    saved = load_saved(folder)
    streams = _streams(saved, corpora, console, needed=not tasks.names)
    context, stride = _window(saved.config, context, stride)
    settings = TaskSettings(_evaluation(saved).batch_rows, context, tasks.limit)
    plan = plan_tasks(
        tasks.names,
        settings=settings,
        tokenizer=saved.tokenizer,
        sets=streams,
        folder=RunFolder(folder).tasks,
        task_data=tasks.data,
    )
    for line in plan.missing:
        console.print(line, highlight=False)
    results = _measure_sets(saved, streams, context, stride, kl, console) if streams else {}
    record = _record(saved, folder, results, context=context, stride=stride)
    if record.sets:
        console.print(sides_table(record))
        print_few_tokens(record, console=console)
        console.print(f"windows of {context} tokens, stride {stride}", highlight=False)
    if plan.tasks:
        found = _measure_tasks(saved, plan, console)
        record = record.model_copy(update={"tasks": found})
        console.print(tasks_table(record))
    if output is not None:
        write_record(output, record)
        console.print(f"record: {output}", highlight=False)
    if tasks.into_record:
        _into_record(folder, record, console)
    return record


def _evaluation(saved: Saved) -> EvaluationSettings:
    return saved.config.evaluation if saved.config else EvaluationSettings()


def _window(run: RunConfig | None, context: int | None, stride: int | None) -> tuple[int, int]:
    """As asked, else as the run measured itself, else half of the context."""
    context = context or (run.context_tokens if run else DEFAULT_CONTEXT_TOKENS)
    if stride is None:
        stride = (
            run.stride_tokens if run and context == run.context_tokens else max(1, context // 2)
        )
    return context, stride


def _record(
    saved: Saved, folder: Path, results: dict[str, SetResult], *, context: int, stride: int
) -> Record:
    run = saved.config
    return Record(
        kind="evaluate",
        method=run.method if run else "neutral",
        sets=results,
        provenance=provenance(
            seed=None, device=saved.device.type, tokenizer_key=tokenizer_key(saved.tokenizer)
        ),
        config={
            **(
                run.model_dump(
                    mode="json", include={"model", "revision", "label", "budget", "seed"}
                )
                if run
                else {}
            ),
            "extension": str(folder),
            "context_tokens": context,
            "stride_tokens": stride,
        },
    )


def _measure_sets(
    saved: Saved, streams: list[TokenStream], context: int, stride: int, kl: bool, console: Console
) -> dict[str, SetResult]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        return evaluate(
            saved.model,
            streams,
            Windows(end_of_text_id(saved.tokenizer), context, stride),
            reference=saved.reference,
            kl=kl,
            tokenizer=saved.tokenizer,
            on_progress=lambda name, done, total: progress.update(
                task, description=f"measuring {name}", completed=done, total=total
            ),
        )


def _measure_tasks(saved: Saved, plan: TaskPlan, console: Console) -> list[TaskScore]:
    revision = saved.config.revision if saved.config else None
    with TaskDisplay(console) as display:
        return measure_tasks(
            saved.model,
            plan,
            model_key=weights_key(saved.weights, saved.backbone_name, revision),
            reference=saved.reference,
            on_progress=display.on_progress,
            on_score=display.on_score,
        )


def _into_record(folder: Path, found: Record, console: Console) -> None:
    """A task that the run's record has already is replaced."""
    path = RunFolder(folder).record
    record = read_record(path)
    tasks = {task.name: task for task in [*record.tasks, *found.tasks]}
    write_record(path, record.model_copy(update={"tasks": list(tasks.values())}))
    console.print(f"record: {path} holds {len(tasks)} tasks", highlight=False)


def _streams(
    saved: Saved, corpora: list[Corpus], console: Console, *, needed: bool
) -> list[TokenStream]:
    tokenising = RunProgress(console).tokenising
    if corpora:
        return [
            tokenise(
                corpus, saved.tokenizer, cache_dir=default_cache_folder(), tokenising=tokenising
            )[0]
            for corpus in corpora
        ]
    if saved.config is None and not needed:
        return []
    if saved.config is None:
        raise UserError(
            "nothing to measure", do="add --set source:NAME=FILE and --set target:NAME=FILE"
        )
    data = RunData.of(saved.config.data, saved.tokenizer, tokenising=tokenising)
    return list(data.evaluate)


def _corpus(text: str) -> Corpus:
    role, _, rest = text.partition(":")
    name, separator, path = rest.partition("=")
    if role not in ("source", "target") or not separator or not name or not path:
        raise UserError(
            "--set", got=text, allowed="role:name=file, for example source:wiki=wiki.jsonl.gz"
        )
    return Corpus.model_validate({"name": name, "role": role, "path": path})
