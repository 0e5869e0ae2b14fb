"""What the smaller commands do: describe a run, list the methods, ask a saved extension
something."""

from rich.console import Console
from rich.table import Table

from neutral_residues.backbone import (
    empty_backbone,
    load_config,
    load_tokenizer,
    pick_device,
    wants_bf16,
)
from neutral_residues.config.run import RunConfig
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.methods.table import find_method, learning_rate, resolved
from neutral_residues.training.cost import WeightCount, peak_memory_bytes
from neutral_residues.training.setup import check_context, make_rows, prepare_data, world_size
from neutral_residues.units import human_bytes


def describe(config: RunConfig, *, console: Console | None = None) -> None:
    """Print weights, tokens, steps, memory and disk of a run. Tokenises into the cache, which the
    run then uses."""
    console = console or Console()
    config = resolved(config)
    method = find_method(config.method)
    model_config = load_config(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    check_context(config, model_config)
    tokenizer = load_tokenizer(
        config.model, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
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
    table.add_row(
        "learning rate", f"{learning_rate(config, hidden_size=text_config.hidden_size):.2e}"
    )
    tokens = len(rows) * config.data.block_tokens
    table.add_row(
        "steps", f"{config.training.steps:,} of {len(rows) // config.training.steps} rows"
    )
    table.add_row("training tokens", f"{tokens:,}, {100 * config.data.source_share:g} % source")
    for stream in data.train:
        table.add_row(f"  {stream.name} ({stream.role})", _stream_line(stream))
    for stream in data.evaluate:
        table.add_row(f"  held out: {stream.name} ({stream.role})", _stream_line(stream))
    memory = weights.training_memory_bytes(config, model_config=text_config, bf16=bf16)
    if pick_device().type == "cpu":
        memory += peak_memory_bytes(
            pick_device()
        )  # libraries and tokenizer, which the run needs too
    table.add_row(
        "memory while training",
        f"roughly {human_bytes(memory)} ({'bfloat16' if bf16 else 'float32'}); neutral advise tries"
        " a few steps",
    )
    disk = (
        weights.checkpoint_bytes() * (config.training.keep_checkpoints + 1)
        + weights.num_new_weights * 4
    )
    table.add_row("disk", f"about {human_bytes(disk)} in {config.output}")
    table.add_row("ranks", str(world_size()))
    console.print(table)


def _stream_line(stream: TokenStream) -> str:
    return (
        f"{stream.num_documents:,} documents, {stream.num_tokens:,} tokens, "
        f"{stream.num_bytes / stream.num_tokens:.2f} bytes per token"
    )
