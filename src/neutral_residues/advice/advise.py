"""Advice before anything is spent: looks at the texts, the backbone and a few real steps, and
prints what follows.

    texts -> backbone on samples -> a few steps in another process -> warnings, recommendations

Nothing is written but the token cache, which the run then uses, and the advice itself where that is
asked for. The run's own output folder stays untouched: it must be free when the run starts.
"""

import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from neutral_residues.advice.rules import (
    Advice,
    CorpusFacts,
    DistanceFacts,
    ProbeFacts,
    TextFacts,
    continued,
    costly_target,
)
from neutral_residues.advice.rules import recommendations as recommend
from neutral_residues.advice.rules import warnings as warn
from neutral_residues.advice.text_statistics import (
    corpus_facts,
    distances,
    sample_stream,
    text_facts,
)
from neutral_residues.advice.trial_run import Rehearsal, probe, whole_run_seconds
from neutral_residues.backbone import (
    empty_backbone,
    frozen_backbone,
    load_config,
    load_tokenizer,
    pick_device,
)
from neutral_residues.config.run import RunConfig
from neutral_residues.data.tokenise import end_of_text_id
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.files import write_json
from neutral_residues.methods.table import find_method, resolved
from neutral_residues.training.setup import (
    RunData,
    check_context,
    make_rows,
    prepare_data,
    tokens_per_step,
)
from neutral_residues.units import human_bytes, human_seconds

SAMPLE_TOKENS = 4000
"""So much of each text the backbone reads."""


def advise(
    config: RunConfig,
    *,
    probe_steps: int,
    output: Path | None = None,
    console: Console | None = None,
) -> Advice:
    """Look at everything that a run will meet, print it with warnings and recommendations; write it
    if asked.

    Args:
        probe_steps: optimiser steps to try, 4 or more; 0 tries none.
        output: file for the advice as JSON.

    Raises:
        UserError: what the run itself would raise before its first step, and what the probe raises.
    """
    console = console or Console()
    if probe_steps and probe_steps < 4:
        raise UserError(
            "probe_steps",
            got=probe_steps,
            allowed="0, or 4 and more: the first three are not timed",
        )
    config = resolved(config)
    trains = find_method(config.method).learning_rate is not None
    data, tokenizer, hidden_size = _checked(config, console, trains=trains)
    with console.status("reading the texts ..."):
        texts, corpora, far = (
            text_facts(data, tokenizer),
            corpus_facts(data, tokenizer),
            distances(data),
        )
    with console.status("measuring the backbone ..."):
        texts = _with_bits(texts, config, data, tokenizer)
    tried = None
    if trains and probe_steps:
        with console.status(f"trying {probe_steps} steps ..."):
            tried = _probe_facts(config, data, probe(config, num_steps=probe_steps))
            if costly_target(texts):
                tried = tried.model_copy(update={"continued_bits": None})
    per_step = tokens_per_step(config)
    advice = Advice(
        texts=texts,
        corpora=corpora,
        distances=far,
        probe=tried,
        warnings=warn(config, texts, corpora, far, tokens_per_step=per_step),
        recommendations=recommend(config, texts, tokens_per_step=per_step, hidden_size=hidden_size),
    )
    print_advice(advice, config, console=console)
    if output is not None:
        write_json(output, advice.model_dump(mode="json"))
        console.print(f"\nadvice: {output}", highlight=False)
    return advice


def _checked(
    config: RunConfig, console: Console, *, trains: bool
) -> tuple[RunData, PreTrainedTokenizerBase, int]:
    """Texts, tokenizer and width of the backbone, after everything that the run checks before its
    first step."""
    settings: dict[str, Any] = {
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    model_config = load_config(config.model, **settings)
    check_context(config, model_config)
    tokenizer = load_tokenizer(config.model, **settings)
    data = prepare_data(config, tokenizer, show_progress=console.is_terminal)
    make_rows(config, data, tokenizer)
    if trains:
        backbone = empty_backbone(model_config, trust_remote_code=config.trust_remote_code)
        find_method(config.method).attach(backbone, config)
    return data, tokenizer, model_config.get_text_config().hidden_size


def _with_bits(
    texts: list[TextFacts], config: RunConfig, data: RunData, tokenizer: PreTrainedTokenizerBase
) -> list[TextFacts]:
    """With the backbone's bits per byte on a sample of each text."""
    streams = [
        sample_stream(stream, SAMPLE_TOKENS, tokenizer)
        for stream in (*data.train, *data.evaluate, *data.validate)
    ]
    device = pick_device()
    model = frozen_backbone(config, device)
    found = []
    for facts, stream in zip(
        texts, streams, strict=True
    ):  # one by one: train and held-out parts may share a name
        (score,) = evaluate(
            model,
            [stream],
            end_of_text=end_of_text_id(tokenizer),
            context_tokens=config.context_tokens,
            stride_tokens=config.stride_tokens,
            batch_rows=config.evaluation.batch_rows,
            backbone=False,
        )
        found.append(facts.model_copy(update={"backbone_bits": score.extended_bits_per_byte}))
    del model
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the probe's process needs it
    return found


def _probe_facts(config: RunConfig, data: RunData, found: Rehearsal) -> ProbeFacts:
    targets = [
        f"bits_per_byte/{stream.name}" for stream in data.while_training if stream.role == "target"
    ]
    curve = [
        (int(point["step"]), statistics.fmean(point[key] for key in targets))
        for point in found.curve
        if targets and all(key in point for key in targets)
    ]
    limit = config.evaluation.tokens_while_training
    return ProbeFacts(
        steps=int(found.curve[-1]["step"]),
        step_seconds=found.cost.step_seconds,
        peak_memory_bytes=found.cost.peak_memory_bytes,
        run_seconds=whole_run_seconds(
            config,
            found,
            on_the_way=sum(min(stream.num_tokens, limit) for stream in data.while_training),
            at_the_end=sum(stream.num_tokens for stream in data.evaluate),
        ),
        target_bits=curve,
        reached_bits=curve[-1][1] if curve else None,
        continued_bits=continued(curve, steps=config.training.steps),
    )


def print_advice(advice: Advice, config: RunConfig, *, console: Console) -> None:
    """Measurements, then warnings, then recommendations with their reasons."""
    console.print(_texts_table(advice.texts))
    if advice.distances:
        console.print(_distance_table(advice.distances))
    console.print(_corpora_table(advice.corpora))
    if advice.probe is not None:
        console.print(_probe_table(advice.probe, config))
    elif find_method(config.method).learning_rate is None:
        console.print(f"{config.method} trains nothing, so there is no step to try")
    print_warnings(advice.warnings, console=console)
    table = _headed(
        "Recommended", ["setting", "value", "in the run", "why"], right=("value", "in the run")
    )
    for r in advice.recommendations:
        table.add_row(r.setting, f"{r.value:g}", f"{r.now:g}", r.reason)
    console.print(table)


def print_warnings(lines: list[str], *, console: Console) -> None:
    """One warning a line."""
    for line in lines:
        console.print(Text.assemble(("warning: ", "bold yellow"), line))


def _headed(title: str, columns: Sequence[str], *, right: Collection[str]) -> Table:
    """An empty table; the columns named in `right` hold numbers."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _texts_table(texts: list[TextFacts]) -> Table:
    sizes = ["documents", "tokens", "bytes/token", "tokens/word", "bits/byte", "bits/sign"]
    table = _headed("Texts under the backbone", ["text", "role", "use", *sizes], right=sizes)
    for text in texts:
        per_word = "-" if text.tokens_per_word is None else f"{text.tokens_per_word:.2f}"
        bits = [
            f"{value:.3f}" if value is not None else "-"
            for value in (text.backbone_bits, text.bits_per_sign)
        ]
        counts = [
            f"{text.num_documents:,}",
            f"{text.num_tokens:,}",
            f"{text.num_bytes / text.num_tokens:.2f}",
        ]
        table.add_row(text.name, text.role, text.use, *counts, per_word, *bits)
    return table


def _distance_table(found: list[DistanceFacts]) -> Table:
    title = "How far replay is (0: like itself, 1: as far as the target)"
    numbers = ["distance", "divergence [bits]", "replay to itself", "replay to target"]
    table = _headed(title, ["source set", *numbers], right=numbers)
    for d in found:
        table.add_row(
            d.set,
            f"{d.way_to_target:.2f}",
            f"{d.bits:.3f}",
            f"{d.replay_bits:.3f}",
            f"{d.target_bits:.3f}",
        )
    return table


def _corpora_table(corpora: list[CorpusFacts]) -> Table:
    numbers = ["looked at", "copies", "nearly copies", "repeated lines"]
    table = _headed("What training text holds twice", ["corpus", *numbers], right=numbers)
    for c in corpora:
        shares = (c.duplicate_share, c.near_duplicate_share, c.boilerplate_share)
        looked_at = f"{c.checked_documents:,} documents, {human_bytes(c.checked_bytes)}"
        table.add_row(c.name, looked_at, *(f"{100 * share:.1f} %" for share in shares))
    return table


def _probe_table(found: ProbeFacts, config: RunConfig) -> Table:
    table = Table(title=f"From {found.steps} steps tried", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    if found.peak_memory_bytes is not None:
        table.add_row("memory", f"{human_bytes(found.peak_memory_bytes)} at its peak")
    if found.run_seconds is not None and found.step_seconds is not None:
        step = f"{found.step_seconds:.2f} s a step"
        table.add_row(
            "time", f"about {human_seconds(found.run_seconds)} in all; {step} under the load of now"
        )
    if found.reached_bits is not None:
        start = found.target_bits[0][1]
        gain = (
            f"from {start:.2f} to {found.reached_bits:.2f} bits per byte within the steps tried:"
            " the least to expect"
        )
        table.add_row("gain", gain)
    if found.continued_bits is not None:
        guess = f"{found.continued_bits:.1f} bits per byte after {config.training.steps:,} steps"
        table.add_row(
            "", f"about {guess}, if each doubling goes on gaining as much as the last (a guess)"
        )
    return table
