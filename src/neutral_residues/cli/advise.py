"""`neutral advise`: prints measurements of a run's texts and of some training steps, and
warnings."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from neutral_residues.advice.advise import Advice, TrialFacts, advise
from neutral_residues.advice.rules import CorpusFacts, DistanceFacts, TextFacts
from neutral_residues.cli.lines import print_line
from neutral_residues.cli.tables import facts_table, new_table, print_warnings
from neutral_residues.config.run import RunConfig
from neutral_residues.files import write_json
from neutral_residues.training.progress import RunProgress
from neutral_residues.training.setup import Setup
from neutral_residues.units import human_bytes, human_seconds


def advise_run(
    config: RunConfig,
    *,
    trial_steps: int,
    output: Path | None = None,
    console: Console | None = None,
) -> Advice:
    """Compute and print the advice for a run, and write it to `output` as JSON, if given."""
    console = console or Console()
    setup = Setup.of(config, tokenising=RunProgress(console).tokenising)
    setup.prepare()  # before the status line, because it has a progress bar
    with console.status("") as status:
        advice = advise(setup, trial_steps=trial_steps, on_stage=status.update)
    console.print(_texts_table(advice.texts))
    if advice.distances:
        console.print(_distance_table(advice.distances))
    console.print(_corpora_table(advice.corpora))
    if advice.trial is not None:
        console.print(_trial_table(advice.trial))
    elif not setup.method.trains_any:
        console.print(f"{config.method} trains nothing, so there is no step to try")
    print_warnings(advice.warnings, console=console)
    if advice.best_use is not None:
        console.print(advice.best_use.line, highlight=False)
    if output is not None:
        write_json(output, advice.model_dump(mode="json"))
        print_line(f"\nadvice: {output}", console=console)
    return advice


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _texts_table(texts: list[TextFacts]) -> Table:
    sizes = ["documents", "tokens", "bytes/token", "tokens/word", "bits/byte", "bits/char"]
    table = new_table("Texts under the backbone", ["text", "role", "use"], sizes)
    for text in texts:
        table.add_row(
            text.name,
            text.role,
            text.use,
            f"{text.num_documents:,}",
            f"{text.num_tokens:,}",
            f"{text.num_bytes / text.num_tokens:.2f}",
            _number(text.tokens_per_word, 2),
            _number(text.backbone_bits, 3),
            _number(text.bits_per_char, 3),
        )
    return table


def _distance_table(found: list[DistanceFacts]) -> Table:
    title = "Distance from the source training text (0: none, 1: as far as the target)"
    numbers = ["distance", "divergence [bits]", "within the text", "to the target"]
    table = new_table(title, ["source set"], numbers)
    for d in found:
        bits = [_number(value, 3) for value in (d.bits, d.replay_bits, d.target_bits)]
        table.add_row(d.set, _number(d.way_to_target, 2), *bits)
    return table


def _corpora_table(corpora: list[CorpusFacts]) -> Table:
    numbers = ["checked", "copies", "repeated lines"]
    table = new_table("Repetition in training text", ["corpus"], numbers)
    for c in corpora:
        shares = (f"{100 * share:.1f} %" for share in (c.duplicate_share, c.repeated_line_share))
        checked = f"{c.checked_documents:,} documents, {human_bytes(c.checked_bytes)}"
        table.add_row(c.name, checked, *shares)
    return table


def _trial_table(found: TrialFacts) -> Table:
    facts = {}
    if found.peak_memory_bytes is not None:
        facts["memory"] = f"{human_bytes(found.peak_memory_bytes)} at its peak"
    if found.run_seconds is not None:
        whole = f"about {human_seconds(found.run_seconds)} in all"
        step = f"{_number(found.step_seconds, 2)} s per step under the present load"
        facts["time"] = f"{whole}; {step}"
    if found.start_bits is not None:
        bits = f"from {found.start_bits:.2f} to {found.target_bits[-1][1]:.2f} bits per byte"
        facts["target"] = f"{bits} within these steps"
    return facts_table(f"From {found.steps} steps tried", facts)
