"""`neutral evaluate`: measures a saved extension and its backbone on text and on tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from neutral_residues.cli.lines import print_line
from neutral_residues.cli.tables import print_chat, print_sets, tasks_table
from neutral_residues.config.data import Corpus
from neutral_residues.data.documents import as_chats_if_it_holds_them
from neutral_residues.errors import UserError
from neutral_residues.evaluation.chat import check_prompts, read_prompts
from neutral_residues.evaluation.evaluate_saved import (
    evaluate_saved,
    evaluation_streams,
    plan_saved_tasks,
    windows_for,
)
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.evaluation.tasks.runner import TaskPlan
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.model_card import write_card
from neutral_residues.results.record import Record, TaskScore
from neutral_residues.results.renewal import check_renewal, renewed
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import read_record, write_record
from neutral_residues.training.progress import MeasuringDisplay, RunProgress


def evaluate_folder(
    folder: Path,
    *,
    sets: Sequence[str] = (),
    context: int | None = None,
    stride: int | None = None,
    kl: bool = False,
    tasks: Sequence[str] = (),
    limit: int | None = None,
    num_fewshot: int | None = None,
    task_data: Path | None = None,
    chat: Path | None = None,
    into_record: bool = False,
    console: Console | None = None,
) -> Record:
    """Measure backbone and extended model on all sets and tasks, print the results, and return them
    as a record. Sets are left out if the run's own record, to which the results will be added,
    holds them as they are. Options are those of the command.

    Raises:
        UserError: for errors in the user's input, before anything is measured if possible.
    """
    console = console or Console()
    corpora = [corpus_of(text, "--set") for text in sets]
    saved = load_saved(folder, dtype=None)
    tokenising = RunProgress(console).tokenising
    streams = evaluation_streams(saved, corpora, tokenising)
    if not streams and not tasks and task_data is None and chat is None:
        do = "add --set source:NAME=FILE and --set target:NAME=FILE"
        raise UserError("nothing to measure", do=do)
    windows = windows_for(saved, context, stride)
    plan = plan_saved_tasks(
        saved, tasks, streams, windows, limit=limit, num_fewshot=num_fewshot, task_data=task_data
    )
    prompts = read_prompts(chat) if chat else []
    is_replaced = into_record and _replaces_record(saved, plan, prompts, kl=kl)
    if into_record and not is_replaced:
        streams = []
    own = []
    if streams and saved.vocabulary:
        own = evaluation_streams(saved, corpora, tokenising, of_backbone=True)
    longest = saved.evaluation.chat_tokens
    check_prompts(prompts, saved.model.config, saved.tokenizer, max_new_tokens=longest)
    for line in plan.missing:
        console.print(line, highlight=False)
    with MeasuringDisplay(console) as display:
        record = evaluate_saved(
            saved,
            streams,
            windows,
            backbone_streams=own,
            kl=kl or (saved.evaluation.kl and not corpora),
            on_progress=display.on_progress,
        )
        _print_texts(record, windows, display.console)
        if plan.tasks:
            record = record.model_copy(update={"tasks": _measure_tasks(saved, plan, display)})
            display.console.print(tasks_table(record))
        answers = saved.chat(prompts, display.on_progress)
        record = record.model_copy(update={"chat": answers})
        print_chat(record, console=display.console)
    if is_replaced:
        texts = {"samples": saved.samples(), "gates": saved.gates(streams)}
        record = record.model_copy(update=texts)
    return record


def _print_texts(record: Record, windows: Windows, console: Console) -> None:
    if record.sets:
        print_sets(record, console=console)
        sizes = f"{windows.context_tokens} tokens, stride {windows.stride_tokens}"
        console.print(f"windows of {sizes}", highlight=False)


def _measure_tasks(saved: Saved, plan: TaskPlan, display: MeasuringDisplay) -> list[TaskScore]:
    return saved.tasks(
        plan,
        model_key=weights_key(saved.weights, saved.backbone_name, saved.revision),
        on_progress=display.on_progress,
        on_scores=display.on_scores,
    )


def _replaces_record(saved: Saved, plan: TaskPlan, prompts: Sequence[str], *, kl: bool) -> bool:
    """Whether this evaluation replaces everything in the record of the run, because thresholds have
    changed. Raises a UserError as `check_renewal`."""
    own = read_record(RunFolder(saved.folder).record)
    tasks = [task.name for task in plan.tasks]
    check_renewal(own, saved.promise, tasks=tasks, with_chat=bool(prompts), with_kl=kl)
    return saved.promise != own.measured_promise


def check_options(
    folder: Path,
    tasks: Sequence[str],
    *,
    limit: int | None,
    num_fewshot: int | None,
    task_data: Path | None,
    chat: Path | None,
    into_record: bool,
    apart: Mapping[str, object],
) -> None:
    """Raise a UserError for options without effect, or that do not go together. `apart`: name ->
    value of options that change what is measured on text, and so cannot be combined with
    `into_record`."""
    given = {"--limit": limit, "--num-fewshot": num_fewshot}
    useless = [name for name, value in given.items() if value is not None]
    if useless and not tasks and task_data is None:
        do = "name tasks, for example --tasks quick"
        raise UserError(f"{useless[0]} goes with --tasks", do=do)
    if limit is not None and limit < 2:
        raise UserError("--limit", got=limit, allowed="2 or more")
    if num_fewshot is not None and num_fewshot < 0:
        raise UserError("--num-fewshot", got=num_fewshot, allowed="0 or more")
    other = next((name for name, value in apart.items() if value), None)
    if into_record and other:
        what = f"{other} does not go with --into-record, which measures what the run measured"
        raise UserError(what, do="use --output")
    if into_record and not RunFolder(folder).is_finished:
        what = f"--into-record needs a finished run; {folder} has no record.json"
        raise UserError(what, do="use --output")


def save(record: Record, folder: Path, output: Path | None, *, into_record: bool) -> None:
    """Write the record to `output`, if given. With `into_record`, also add it to the record and the
    model card of the run in `folder`."""
    console = Console()
    if output is not None:
        write_record(output, record)
        print_line(f"record: {output}", console=console)
    if into_record:
        run = RunFolder(folder)
        earlier = read_record(run.record)
        whole = renewed(earlier, record)
        write_record(run.record, whole)
        write_card(run.weights, whole)
        tasks = f" holds {len(whole.main_scores)} tasks" if whole.tasks else ""
        print_line(f"record: {run.record}{tasks}", console=console)
        if not earlier.is_current:
            console.print("its numbers are those of the extension as it is now", highlight=False)


def corpus_of(text: str, option: str) -> Corpus:
    """Parse the value "role:name=file" of an option such as --set. A file of chats is recognised by
    its contents."""
    role, _, rest = text.partition(":")
    name, separator, path = rest.partition("=")
    if role not in ("source", "target") or not separator or not name or not path:
        allowed = "role:name=file, for example source:wiki=wiki.jsonl.gz"
        raise UserError(option, got=text, allowed=allowed)
    corpus = Corpus.model_validate({"name": name, "role": role, "path": path})
    return as_chats_if_it_holds_them(corpus)
