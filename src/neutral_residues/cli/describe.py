"""`neutral describe`: prints what a run would do, without training."""

from collections.abc import Sequence

from rich.console import Console

from neutral_residues.cli.tables import facts_table
from neutral_residues.config.data import DataSettings
from neutral_residues.config.run import RunConfig
from neutral_residues.data.run_data import text_sizes
from neutral_residues.data.text_size import TextSize
from neutral_residues.methods.token_distillation import TOKENS_PER_NEW_TOKEN
from neutral_residues.training.cost import peak_memory_bytes, training_memory_bytes
from neutral_residues.training.setup import Setup, ranks
from neutral_residues.units import human_bytes

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon for the layers' matrices, AdamW for the rest"}


def print_description(config: RunConfig) -> None:
    """Print weights, tokens, steps, memory and disk of a run.

    Raises:
        UserError: for invalid settings, text that cannot be read, or text that is too short, if it
            was counted completely.
    """
    with Console(stderr=True).status(f"loading the tokenizer of {config.model} ...") as status:
        setup = Setup.of(config)
        status.update("counting tokens ...")
        texts = setup.texts_at_hand
        train, held_out, _ = text_sizes(texts, setup.tokenizer)
        is_whole = len(texts.train) == len(config.data.train)
        if is_whole and all(size.is_exact for size in (*train, *held_out)):
            setup.prepare()
    config, weights, training = setup.config, setup.weights, setup.config.training
    precision = "bfloat16" if setup.bf16 else "float32"
    memory = f"roughly {human_bytes(_memory_bytes(setup))} ({precision})"
    # A checkpoint contains trained weights and two moments of AdamW (Muon has one), in float32.
    checkpoints = 12 * weights.num_trained_weights * (training.keep_checkpoints + 1)
    disk = human_bytes(checkpoints + 4 * weights.num_new_weights)
    facts = {
        "backbone weights": f"{weights.num_backbone_weights:,}",
        "new weights": f"{weights.num_new_weights:,} ({100 * weights.budget:.2f} %)",
        "trained weights": f"{weights.num_trained_weights:,}",
        **_new_tokens(setup),
        "learning rate": f"{setup.learning_rate:.2e}",
        "optimizer": OPTIMIZERS[training.optimizer],
        "steps": f"{training.steps:,} of {setup.rows_per_step} rows",
        "training tokens": f"{setup.num_tokens:,}, {_source(config)}",
        **{f"  {s.name} ({_part(s, config.data)})": _size(s) for s in train},
        **_self_text(setup, is_written=is_whole),
        **{f"  held out: {s.name} ({s.role})": _size(s) for s in held_out},
        **_in_turns(config, held_out),
        "memory while training": f"{memory}; neutral advise tries a few steps",
        "disk": f"about {disk} in {config.output}",
        "ranks": str(ranks().num_processes),
    }
    Console().print(facts_table(f"{config.model} + {setup.method.title}", facts))


def _self_text(setup: Setup, *, is_written: bool) -> dict[str, str]:
    """The row about source text that the backbone generates, if there is any."""
    corpus, settings = setup.config.data.self_corpus, setup.config.data.self_replay
    if corpus is None:
        return {}
    if is_written and setup.self_text:
        return {"    of which": setup.self_text.sentence}
    prompts = f" from the lines of {settings.prompts}" if settings.prompts else ""
    how = f"at temperature {settings.temperature:g}, top_p {settings.top_p:g}"
    what = f"about {setup.config.self_tokens:,} tokens, to be written by the backbone{prompts}"
    return {f"  {corpus.name} (source)": f"{what} {how}"}


def _new_tokens(setup: Setup) -> dict[str, str]:
    if setup.vocabulary is None:
        return {}
    size, start = setup.vocabulary.size, setup.config.vocabulary.start
    saved = f"neutral vocabulary shows what they save; keep: {setup.vocabulary.keep}"
    facts = {"new tokens": f"{size:,}; {saved}"}
    if setup.start is None:
        reads = f", from about {size * TOKENS_PER_NEW_TOKEN:,} tokens"
        facts["  start"] = start + (reads if start == "distilled" else "")
    return facts


def _memory_bytes(setup: Setup) -> int:
    model_config = setup.model_config.get_text_config()
    memory = training_memory_bytes(setup.weights, setup.config, model_config, bf16=setup.bf16)
    # On a CPU, libraries and tokenizer of this process are counted too, as the run needs them.
    return memory + (peak_memory_bytes(setup.device) if setup.device.type == "cpu" else 0)


def _source(config: RunConfig) -> str:
    share, spliced = config.data.source_share, config.data.spliced_share
    in_turns = f", {100 * spliced:g} % of its rows in turns with target text" if spliced else ""
    return f"{100 * share:g} % source{in_turns}"


def _part(size: TextSize, data: DataSettings) -> str:
    """The role of a training text, with its share of the rows of this role, if it is set."""
    if (share := data.shares.get(size.name)) is None:
        return size.role
    percent = " to ".join(dict.fromkeys(f"{100 * it:g}" for it in share))
    return f"{percent} % of {size.role} rows"


def _in_turns(config: RunConfig, held_out: Sequence[TextSize]) -> dict[str, str]:
    """The row about text that alternates between the first source and target set, if measured."""
    texts = [size for size in held_out if size.num_predicted is None]
    first = {size.role: size.name for size in reversed(texts)}
    num_windows = config.evaluation.num_spliced(config.context_tokens)
    if not num_windows or len(first) < 2:
        return {}
    windows = f"up to {num_windows} windows of {config.context_tokens} tokens"
    return {f"  held out: {first['source']} and {first['target']} in turns": windows}


def _size(size: TextSize) -> str:
    if size.num_predicted is not None:
        whole = f"{size.num_documents:,} documents, {size.num_tokens:,} tokens"
        return f"{whole}, of which {size.num_predicted:,} are predicted"
    about = "" if size.is_exact else "about "
    return (
        f"{about}{size.num_documents:,} documents, {about}{size.num_tokens:,} tokens, "
        f"{size.num_bytes / size.num_tokens:.2f} bytes per token"
    )
