"""What the smaller commands do: describe a run, measure a saved extension, ask it something."""

from dataclasses import dataclass
from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from neutral_residues.breakdown import breakdowns
from neutral_residues.config import Corpus, EvaluationSettings, RunConfig
from neutral_residues.cost import WeightCount, peak_memory_bytes
from neutral_residues.data.encoding import end_of_text_id, tokenizer_key
from neutral_residues.data.tokens import TokenStream, tokenise
from neutral_residues.display import human_bytes
from neutral_residues.errors import UserError
from neutral_residues.evaluate import evaluate
from neutral_residues.files import default_cache_folder
from neutral_residues.generate import generate_both
from neutral_residues.loading import empty_backbone, load_config, load_tokenizer, pick_device
from neutral_residues.methods import METHODS, RECIPE_WIDTH, find_method, learning_rate, resolved
from neutral_residues.preparation import (
    check_context,
    evaluation_set,
    make_rows,
    prepare_data,
    wants_bf16,
    world_size,
)
from neutral_residues.record import VERSION, Record, TaskScore
from neutral_residues.results import provenance, read_record, write_record
from neutral_residues.run_folder import RunFolder
from neutral_residues.saved import Saved, load_saved
from neutral_residues.scores import SetScore, metrics
from neutral_residues.summary import print_few_tokens, sides_table, tasks_table
from neutral_residues.tasks.keeping import weights_key
from neutral_residues.tasks.measure import TaskSettings, measure_tasks, plan_tasks
from neutral_residues.tasks.suites import AskedTask

DEFAULT_CONTEXT_TOKENS = 512


def describe(config: RunConfig, *, console: Console | None = None) -> None:
    """Print weights, tokens, steps, memory and disk of a run. Tokenises into the cache, which the run then uses."""
    console = console or Console()
    config = resolved(config)
    method = find_method(config.method)
    model_config = load_config(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    check_context(config, model_config)
    tokenizer = load_tokenizer(config.model, revision=config.revision, trust_remote_code=config.trust_remote_code)
    data = prepare_data(config, tokenizer, show_progress=console.is_terminal)
    rows = make_rows(config, data, tokenizer)
    backbone = empty_backbone(model_config, trust_remote_code=config.trust_remote_code)
    weights = WeightCount.of_backbone(backbone)
    weights = weights.with_model(method.attach(backbone, config))
    text_config = model_config.get_text_config()
    bf16 = wants_bf16(config, pick_device())

    table = Table(title=f"{config.model} + {method.title}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    table.add_row("backbone weights", f"{weights.num_backbone_weights:,}")
    table.add_row("new weights", f"{weights.num_new_weights:,} ({100 * weights.budget:.2f} %)")
    table.add_row("trained weights", f"{weights.num_trained_weights:,}")
    table.add_row("learning rate", f"{learning_rate(config, hidden_size=text_config.hidden_size):.2e}")
    tokens = len(rows) * config.data.block_tokens
    table.add_row("steps", f"{config.training.steps:,} of {len(rows) // config.training.steps} rows")
    table.add_row("training tokens", f"{tokens:,}, {100 * config.data.source_share:g} % source")
    for stream in data.train:
        table.add_row(f"  {stream.name} ({stream.role})", _stream_line(stream))
    for stream in data.evaluate:
        table.add_row(f"  held out: {stream.name} ({stream.role})", _stream_line(stream))
    memory = weights.training_memory_bytes(config, model_config=text_config, bf16=bf16)
    if pick_device().type == "cpu":
        memory += peak_memory_bytes(pick_device())  # libraries and tokenizer, which the run needs too
    table.add_row(
        "memory while training",
        f"roughly {human_bytes(memory)} ({'bfloat16' if bf16 else 'float32'}); neutral advise tries a few steps",
    )
    disk = weights.checkpoint_bytes() * (config.training.keep_checkpoints + 1) + weights.num_new_weights * 4
    table.add_row("disk", f"about {human_bytes(disk)} in {config.output}")
    table.add_row("ranks", str(world_size()))
    console.print(table)


def list_methods(*, console: Console | None = None) -> None:
    """Print the table of methods."""
    console = console or Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for row in METHODS:
        facts = [f"the budget becomes {row.size}" if row.size else "adds no weights"]
        facts += [f"learning rate {row.learning_rate:g}"] if row.learning_rate is not None else []
        facts += [f"afterwards: {', '.join(row.afterwards)}"] if row.afterwards else []
        table.add_row(row.name, f"{row.title}: {row.trains}\n[dim]{'; '.join(facts)}\n{row.paper}[/dim]")
    console.print(table)
    console.print(
        f"Learning rates are for a backbone of width {RECIPE_WIDTH} and shrink as 1/width.\n"
        "merge: folds into the backbone's matrices. skip: tokens whose gate is 0 need no extra work. "
        "stock: what is saved, or exported, is a model that Transformers knows.",
        highlight=False,
    )


def _stream_line(stream: TokenStream) -> str:
    return (
        f"{stream.num_documents:,} documents, {stream.num_tokens:,} tokens, "
        f"{stream.num_bytes / stream.num_tokens:.2f} bytes per token"
    )


@dataclass(frozen=True)
class TaskOptions:
    """Tasks to give to a saved extension; empty names mean none.

    Attributes:
        names: tasks and suites, see `tasks/suites.py`.
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
        given = {"--limit": self.limit, "--task-data": self.data, "--into-record": self.into_record or None}
        useless = [name for name, value in given.items() if value is not None]
        if useless and not self.names:
            raise UserError(f"{useless[0]} goes with --tasks", do="name tasks, for example --tasks quick")
        if self.limit is not None and self.limit < 2:
            raise UserError("--limit", got=self.limit, allowed="2 or more")
        if self.into_record and not RunFolder(folder).is_finished:
            raise UserError(f"--into-record needs a finished run; {folder} has no record.json", do="use --output")


def evaluate_folder(
    folder: Path,
    *,
    sets: tuple[str, ...],
    context: int | None,
    stride: int | None,
    output: Path | None,
    tasks: TaskOptions = TaskOptions(),
    console: Console | None = None,
) -> Record:
    """Measure a saved extension and its backbone in one pass; print both sides, and write the record if asked."""
    console = console or Console()
    corpora = [_corpus(text) for text in sets]
    tasks.check(folder)
    saved = load_saved(folder)
    streams = _streams(saved, corpora, console, needed=not tasks.names)
    asked = plan_tasks(tasks.names, sets={s.name: s.role for s in streams}, task_data=tasks.data, console=console)
    run = saved.config
    context = context or (run.context_tokens if run else DEFAULT_CONTEXT_TOKENS)
    if stride is None:
        stride = run.stride_tokens if run and context == run.context_tokens else max(1, context // 2)
    scores = _measure_sets(saved, streams, context, stride, console) if streams else []
    record = Record(
        kind="evaluate",
        method=run.method if run else "neutral",
        metrics=metrics(scores),
        sets=[evaluation_set(stream, "evaluate") for stream in streams],
        breakdowns=breakdowns(scores, streams, saved.tokenizer),
        provenance=provenance(seed=None, device=pick_device().type, tokenizer_key=tokenizer_key(saved.tokenizer)),
        config={
            **(run.model_dump(mode="json", include={"model", "revision", "label", "budget", "seed"}) if run else {}),
            "extension": str(folder),
            "context_tokens": context,
            "stride_tokens": stride,
        },
    )
    if record.metrics:
        console.print(sides_table(record))
        print_few_tokens(record, console=console)
        console.print(f"windows of {context} tokens, stride {stride}", highlight=False)
    if asked:
        rows = run.evaluation.batch_rows if run else EvaluationSettings().batch_rows
        found = _measure_tasks(saved, folder, asked, streams, TaskSettings(rows, context, tasks.limit), console)
        record = record.model_copy(update={"tasks": found})
        console.print(tasks_table(record))
    if output is not None:
        write_record(output, record)
        console.print(f"record: {output}", highlight=False)
    if tasks.into_record:
        _into_record(folder, record, console)
    return record


def _measure_sets(
    saved: Saved, streams: list[TokenStream], context: int, stride: int, console: Console
) -> list[SetScore]:
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("measuring", total=None)
        return evaluate(
            saved.model,
            streams,
            end_of_text=end_of_text_id(saved.tokenizer),
            context_tokens=context,
            stride_tokens=stride,
            reference=saved.reference,
            on_progress=lambda name, done, total: progress.update(
                task, description=f"measuring {name}", completed=done, total=total
            ),
        )


def _measure_tasks(
    saved: Saved,
    folder: Path,
    asked: list[AskedTask],
    streams: list[TokenStream],
    settings: TaskSettings,
    console: Console,
) -> list[TaskScore]:
    run = RunFolder(folder)
    weights = run.extension if saved.config else folder
    name = saved.config.model if saved.config else str(saved.model.config._name_or_path)  # type: ignore[union-attr]
    revision = saved.config.revision if saved.config else None
    return measure_tasks(
        saved.model,
        saved.tokenizer,
        asked,
        settings=settings,
        streams=streams,
        folder=run.tasks,
        model_key=weights_key(weights, name, revision),
        reference=saved.reference,
        console=console,
    )


def _into_record(folder: Path, found: Record, console: Console) -> None:
    """A task that the run's record has already is replaced."""
    path = RunFolder(folder).record
    record = read_record(path)
    tasks = {task.name: task for task in [*record.tasks, *found.tasks]}
    write_record(path, record.model_copy(update={"tasks": list(tasks.values()), "version": VERSION}))
    console.print(f"record: {path} holds {len(tasks)} tasks", highlight=False)


def _streams(saved: Saved, corpora: list[Corpus], console: Console, *, needed: bool) -> list[TokenStream]:
    if corpora:
        return [
            tokenise(
                corpus,
                saved.tokenizer,
                cache_dir=default_cache_folder(),
                num_workers=0,
                show_progress=console.is_terminal,
            )[0]
            for corpus in corpora
        ]
    if saved.config is None and not needed:
        return []
    if saved.config is None:
        raise UserError("nothing to measure", do="add --set source:NAME=FILE and --set target:NAME=FILE")
    return list(prepare_data(saved.config, saved.tokenizer, show_progress=console.is_terminal).evaluate)


def _corpus(text: str) -> Corpus:
    role, _, rest = text.partition(":")
    name, separator, path = rest.partition("=")
    if role not in ("source", "target") or not separator or not name or not path:
        raise UserError("--set", got=text, allowed="role:name=file, for example source:wiki=wiki.jsonl.gz")
    return Corpus.model_validate({"name": name, "role": role, "path": path})


def generate_folder(
    folder: Path,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    console: Console | None = None,
) -> None:
    """Print what backbone and extension make of the same prompt, side by side."""
    console = console or Console()
    saved = load_saved(folder)
    sample = generate_both(
        saved.model,
        saved.tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        reference=saved.reference,
    )
    width = max(30, console.width // 2 - 1)
    panels = [
        Panel(Text(text), title=title, width=width)
        for title, text in (("backbone", sample.backbone), ("with extension", sample.extended))
    ]
    console.print(Text(prompt, style="bold"))
    console.print(Columns(panels, padding=(0, 1)))
