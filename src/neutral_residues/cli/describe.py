"""`neutral describe`: what a run would do."""

from rich.console import Console
from rich.table import Table

from neutral_residues.config.run import RunConfig
from neutral_residues.data.text_size import TextSize
from neutral_residues.training.describe import describe
from neutral_residues.training.setup import Setup
from neutral_residues.units import human_bytes


def print_description(config: RunConfig, *, console: Console | None = None) -> None:
    """Print weights, tokens, steps, memory and disk of a run."""
    console = console or Console()
    with Console(stderr=True).status(f"loading the tokenizer of {config.model} ...") as status:
        setup = Setup.of(config)
        status.update("counting tokens ...")
        found = describe(setup)
    config = setup.config
    weights = found.weights
    precision = "bfloat16" if setup.bf16 else "float32"
    source = f"{100 * config.data.source_share:g} % source"
    rows = {
        "backbone weights": f"{weights.num_backbone_weights:,}",
        "new weights": f"{weights.num_new_weights:,} ({100 * weights.budget:.2f} %)",
        "trained weights": f"{weights.num_trained_weights:,}",
        "learning rate": f"{found.learning_rate:.2e}",
        "steps": f"{config.training.steps:,} of {found.rows_per_step} rows",
        "training tokens": f"{found.num_tokens:,}, {source}",
        **{f"  {s.name} ({s.role})": _size(s) for s in found.train},
        **{f"  held out: {s.name} ({s.role})": _size(s) for s in found.evaluate},
        "memory while training": (
            f"roughly {human_bytes(found.memory_bytes)} ({precision}); neutral advise tries a few"
            " steps"
        ),
        "disk": f"about {human_bytes(found.disk_bytes)} in {config.output}",
        "ranks": str(found.num_ranks),
    }
    title = f"{config.model} + {setup.method.title}"
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _size(size: TextSize) -> str:
    about = "" if size.is_exact else "about "
    return (
        f"{about}{size.num_documents:,} documents, {about}{size.num_tokens:,} tokens, "
        f"{size.num_bytes / size.num_tokens:.2f} bytes per token"
    )
