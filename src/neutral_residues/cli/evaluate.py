"""`neutral evaluate`: a saved extension and its backbone, measured on text and on tasks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from neutral_residues.cli.tables import print_few_tokens, sets_table, tasks_table
from neutral_residues.config.run import Corpus
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate_saved import (
    evaluate_saved,
    evaluation_streams,
    plan_saved_tasks,
    windows_for,
)
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.evaluation.tasks.runner import TaskPlan, measure_tasks
from neutral_residues.results.record import Record, TaskScore
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import read_record, write_record
from neutral_residues.training.progress import RunProgress, TaskDisplay


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
    sets: Sequence[str] = (),
    context: int | None = None,
    stride: int | None = None,
    output: Path | None = None,
    kl: bool = False,
    tasks: TaskOptions = TaskOptions(),
    console: Console | None = None,
) -> Record:
    """Print backbone and extended model on every set and task; write the record if asked.

    Raises:
        UserError: for whatever the user can correct, before anything is measured where possible.
    """
    console = console or Console()
    corpora = [_corpus(text) for text in sets]
    tasks.check(folder)
    saved = load_saved(folder)
    streams = evaluation_streams(saved, corpora, RunProgress(console).tokenising)
    if not streams and not tasks.names:
        raise UserError(
            "nothing to measure", do="add --set source:NAME=FILE and --set target:NAME=FILE"
        )
    windows = windows_for(saved, context, stride)
    plan = plan_saved_tasks(
        saved, tasks.names, streams, windows, limit=tasks.limit, task_data=tasks.data
    )
    for line in plan.missing:
        console.print(line, highlight=False)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("measuring", total=None)

        def show(name: str, done: int, total: int) -> None:
            progress.update(bar, description=f"measuring {name}", completed=done, total=total)

        record = evaluate_saved(saved, streams, windows, kl=kl, on_progress=show)
    if record.sets:
        console.print(sets_table(record))
        print_few_tokens(record, console=console)
        sizes = f"{windows.context_tokens} tokens, stride {windows.stride_tokens}"
        console.print(f"windows of {sizes}", highlight=False)
    if plan.tasks:
        found = _measure_tasks(saved, plan, console)
        record = record.model_copy(update={"tasks": found})
        console.print(tasks_table(record))
    _write(record, folder, output, into_record=tasks.into_record, console=console)
    return record


def _write(
    record: Record, folder: Path, output: Path | None, *, into_record: bool, console: Console
) -> None:
    if output is not None:
        write_record(output, record)
        console.print(f"record: {output}", highlight=False)
    if into_record:  # replaces a task that the run's record has already
        path = RunFolder(folder).record
        own = read_record(path)
        tasks = {task.name: task for task in [*own.tasks, *record.tasks]}
        write_record(path, own.model_copy(update={"tasks": list(tasks.values())}))
        console.print(f"record: {path} holds {len(tasks)} tasks", highlight=False)


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


def _corpus(text: str) -> Corpus:
    role, _, rest = text.partition(":")
    name, separator, path = rest.partition("=")
    if role not in ("source", "target") or not separator or not name or not path:
        raise UserError(
            "--set", got=text, allowed="role:name=file, for example source:wiki=wiki.jsonl.gz"
        )
    return Corpus.model_validate({"name": name, "role": role, "path": path})
