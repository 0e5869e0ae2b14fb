"""Prints a record as tables, and the summary at the end of a run. Needs only the record, no
torch."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neutral_residues.cli.lines import print_line
from neutral_residues.evaluation.token_kinds import few_tokens_line
from neutral_residues.results.record import Record, Sample
from neutral_residues.results.set_result import WRONG, SetResult, wrong_share
from neutral_residues.results.spliced import LATER
from neutral_residues.results.wording import LARGE, better_or_worse, factor_of, with_half_width
from neutral_residues.training.progress import print_plain

MOSTLY_OPEN = 0.5
"""Largest share of source tokens with an open gate for which calibration is suggested. Gates that
are open more often were not trained to close, and calibration does not help."""


def print_summary(record: Record, output: Path, *, console: Console | None = None) -> None:
    """Print the results of both models on all sets and tasks, the paths of what was saved, and the
    commands to run next."""
    console = console or Console()
    print_sets(record, console=console)
    if record.tasks:
        console.print(tasks_table(record))
    print_chat(record, console=console)
    cost = record.cost
    if cost.new_share is not None and cost.tokens and cost.seconds:
        weights = f"{cost.new_weights:,} new weights, {100 * cost.new_share:.2f} %"
        tokens = f"{cost.tokens:,} tokens in {cost.seconds:.0f} s"
        console.print(f"{weights} of {cost.backbone_weights:,}; {tokens}", highlight=False)
    for sample in record.samples:
        print_sample(sample, console=console)
    lines = [
        f"\nextension: {output / 'extension'}",
        f"record:    {output / 'record.json'}",
        f"report:    neutral report {output}",
    ]
    if 0 < (share := _open_share(record)) < MOSTLY_OPEN:
        command = f"neutral calibrate {output} --on source:NAME=FILE"
        lines.append(f"gates:     open on {100 * share:.2g} % of source tokens; fewer: {command}")
    print_line("\n".join(lines), console=console)


def _open_share(record: Record) -> float:
    """The largest share of tokens with an open gate on any source set; 0 if gates read layers,
    because their calibration costs too much of what was learnt."""
    if record.config.get("residues", {}).get("gate_reads") != "tokens":
        return 0.0
    sources = [it for it in record.sets.values() if it.role == "source"]
    return max((1 - it.neutral_share for it in sources if it.neutral_share is not None), default=0)


def print_chat(record: Record, *, console: Console) -> None:
    """Print how many chat answers equal the backbone's, and the first that differs."""
    if not record.chat:
        return
    other = [sample for sample in record.chat if not sample.is_same]
    same = f"{len(record.chat) - len(other)} of {len(record.chat)}"
    console.print(f"chat: {same} answers are word for word the backbone's", highlight=False)
    for sample in other[:1]:
        print_sample(sample, console=console)


def print_sample(sample: Sample, *, console: Console) -> None:
    """Print a prompt and its continuations by both models."""
    console.print(Text(f"\n{sample.prompt}", style="bold"))
    console.print(f"  backbone   {sample.backbone}", highlight=False, markup=False)
    console.print(f"  extended   {sample.extended}", highlight=False, markup=False)


def new_table(title: str, text: Iterable[str], numbers: Iterable[str]) -> Table:
    """An empty table. The columns in `text` may wrap; those in `numbers` are right-aligned."""
    table = Table(title=title, title_justify="left")
    for column in text:
        table.add_column(column, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    return table


def facts_table(title: str, facts: Mapping[str, str]) -> Table:
    """A table with two columns, names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    for name, value in facts.items():
        table.add_row(name, value)
    return table


def print_warnings(lines: Iterable[str], *, console: Console) -> None:
    """Print each of `lines` as a warning."""
    for line in lines:
        print_plain(console, Text.assemble(("warning: ", "bold yellow"), line))


def print_sets(record: Record, *, console: Console) -> None:
    """Print the results on text, with a warning for each set whose change is concentrated on few
    tokens."""
    on_text = (sets_table, beginnings_table, spliced_table)
    for table in (*on_text, gates_table, gates_since_switch_table):
        if (found := table(record)) is not None:
            console.print(found)
    print_few_tokens(record, console=console)


def print_few_tokens(record: Record, *, console: Console) -> None:
    """Print a warning for each set whose change is concentrated on few tokens."""
    lines = (
        few_tokens_line(name, found.breakdown)
        for name, found in record.sets.items()
        if found.breakdown is not None and found.breakdown.is_concentrated
    )
    print_warnings(lines, console=console)


def sets_table(record: Record) -> Table:
    """Results of both models on all held-out sets, with the share of tokens whose gates are all
    0."""
    return _results_table(
        f"{record.label}: bits per byte on held-out text (lower is better)", record.sets
    )


def beginnings_table(record: Record) -> Table | None:
    """Results of both models on texts that are read by themselves; None if not measured."""
    lengths = {it.num_tokens // it.num_documents for it in record.beginnings.values()}
    if not lengths:
        return None
    what = f"the first {lengths.pop()} tokens of each text, read by themselves as a prompt is"
    return _results_table(f"bits per byte of {what}", record.beginnings)


def _results_table(title: str, sets: Mapping[str, SetResult]) -> Table:
    numbers = ["backbone", "extended", "change", "token perplexity", "tokens with all gates 0"]
    if any(found.kl_nats is not None for found in sets.values()):
        numbers.append("KL, nats per token")
    other_tokens = any(found.backbone_tokens for found in sets.values())
    if other_tokens:
        numbers.insert(3, "tokens")
    table = new_table(title, ["set", "role"], numbers)
    for name, found in sets.items():
        neutral = found.neutral_share
        table.add_row(
            name,
            found.role,
            f"{found.backbone_bits_per_byte:.4f}",
            f"{found.extended_bits_per_byte:.4f}",
            f"{found.rise_percent:+.2f} %",
            *([_tokens(found)] if other_tokens else []),
            _perplexities(found),
            "-" if neutral is None else f"{100 * neutral:.1f} %",
            *([] if found.kl_nats_per_token is None else [f"{found.kl_nats_per_token:.4f}"]),
        )
    return table


def _tokens(found: SetResult) -> str:
    """Number of tokens for the backbone, and for the extended model, if it differs."""
    before = found.backbone_tokens
    return f"{before:,} -> {found.num_tokens:,}" if before else f"{found.num_tokens:,}"


def _perplexities(found: SetResult) -> str:
    """Token perplexities of both models; "-" if they have different tokens, because these are not
    comparable."""
    if found.backbone_tokens:
        return "-"
    return f"{found.backbone_token_perplexity:.2f} -> {found.extended_token_perplexity:.2f}"


def gates_table(record: Record) -> Table | None:
    """Share of gates in the wrong state, by layer: open on source sets, closed on target sets. None
    without gates."""
    gated = {name: s for name, s in record.sets.items() if s.closed_gates_share is not None}
    if not gated:
        return None
    columns = [f"{name}, {WRONG[found.role]}" for name, found in gated.items()]
    table = new_table("gates on the wrong side, % of tokens (lower is better)", ["layer"], columns)
    for of_layer in zip(*(found.layers for found in gated.values()), strict=True):
        table.add_row(
            str(of_layer[0].layer),
            *(
                f"{100 * wrong_share(layer.gates_zero or 0.0, found.role):.1f}"
                for layer, found in zip(of_layer, gated.values(), strict=True)
            ),
        )
    return table


def spliced_table(record: Record) -> Table | None:
    """Results of both models on tokens after a switch of language, and on the same tokens in their
    own text; None if not measured."""
    if record.spliced is None:
        return None
    title = "bits per byte after a switch of language; alone: of the same tokens in their own text"
    models = ["backbone", "extended", "change"]
    numbers = [*models, *(f"{name}, alone" for name in models)]
    table = new_table(title, ["tokens"], numbers)
    for name, found in record.spliced.directions.items():
        table.add_row(
            name,
            f"{found.backbone_bits_per_byte:.4f}",
            f"{found.extended_bits_per_byte:.4f}",
            f"{found.rise_percent:+.2f} %",
            f"{found.backbone_alone_bits_per_byte:.4f}",
            f"{found.extended_alone_bits_per_byte:.4f}",
            f"{found.alone_rise_percent:+.2f} %",
        )
    return table


def gates_since_switch_table(record: Record) -> Table | None:
    """Share of gates that are exactly 0, by distance from the switch in tokens; None without
    gates."""
    directions = record.spliced.directions if record.spliced else {}
    gated = {name: found for name, found in directions.items() if found.gates}
    if not gated:
        return None
    titles = list(dict.fromkeys(gates.title for found in gated.values() for gates in found.gates))
    title = "gates that are exactly 0, % of (token, layer) gates, by tokens since the switch"
    table = new_table(title, ["tokens"], [*titles, f"from {LATER} on"])
    for name, found in gated.items():
        shares = {gates.title: gates.closed_share for gates in found.gates}
        row = [*map(shares.get, titles), found.closed_share_later]
        table.add_row(name, *("-" if share is None else f"{100 * share:.0f}" for share in row))
    return table


def tasks_table(record: Record) -> Table:
    """Scores of both models on all tasks, with the interval of the difference."""
    has_shots = any(task.num_fewshot for task in record.tasks)
    has_cut = any(task.num_truncated for task in record.tasks)
    has_chance = any(task.chance is not None for task in record.tasks)
    falling = {task.metric: None for task in record.tasks if task.direction == "lower"}
    counts = ["items"] + ["few-shot"] * has_shots + ["truncated prompts"] * has_cut
    title = f"{record.label}: tasks, shares in %"
    title += f"; lower is better for {', '.join(falling)}" if falling else ""
    numbers = [*counts, *["chance"] * has_chance, "backbone", "extended"]
    table = new_table(title, ["task", "score"], numbers)
    table.add_column("change, 95 %", justify="right", no_wrap=True)
    table.add_column("beyond noise")
    # Compact, because names of tasks are long, and a terminal may have only 80 columns.
    table.box, table.show_edge, table.padding = SIMPLE_HEAD, False, 0
    table.columns[0].no_wrap = True
    named = ""
    for task in record.tasks:
        factor = factor_of(task)
        is_noise = task.low <= 0 <= task.high
        table.add_row(
            task.name if task.name != named else "",
            task.metric,
            f"{task.num_items:,}",
            *([str(task.num_fewshot)] if has_shots else []),
            *([f"{task.num_truncated:,}"] if has_cut else []),
            *(["-" if task.chance is None else f"{100 * task.chance:.2f}"] if has_chance else []),
            *(_score(factor * value) for value in (task.backbone, task.extended)),
            with_half_width(factor * task.difference, factor * task.low, factor * task.high),
            "no" if is_noise else better_or_worse(task.difference, task.direction),
        )
        named = task.name
    return table


def _score(value: float) -> str:
    return f"{value:.2f}" if abs(value) < LARGE else f"{value:.1e}"
