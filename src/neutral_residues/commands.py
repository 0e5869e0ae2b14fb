"""What the smaller commands do: describe a run, list the methods, ask a saved extension something."""

from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from neutral_residues.config import RunConfig
from neutral_residues.cost import WeightCount, peak_memory_bytes
from neutral_residues.data.tokens import TokenStream
from neutral_residues.display import human_bytes
from neutral_residues.generate import generate_both
from neutral_residues.loading import empty_backbone, load_config, load_tokenizer, pick_device
from neutral_residues.methods import METHODS, RECIPE_WIDTH, find_method, learning_rate, resolved
from neutral_residues.preparation import (
    check_context,
    make_rows,
    prepare_data,
    wants_bf16,
    world_size,
)
from neutral_residues.saved import load_saved


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
