"""`neutral calibrate`: finds thresholds for gates, and prints their promise and its cost."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from neutral_residues.calibration.calibrate import Found, Wanted
from neutral_residues.calibration.saved import calibrate_saved, remove_calibration, save_calibration
from neutral_residues.cli.evaluate import corpus_of
from neutral_residues.cli.lines import print_line
from neutral_residues.cli.tables import new_table, print_warnings
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate_saved import windows_for
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.results.promise import Promise, TargetCost
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.results.store import read_record
from neutral_residues.training.progress import RunProgress, announce

AVERAGE = "average"
MUCH_LOST_PERCENT = 5.0
"""Thresholds that lose a larger share of what was learnt are warned of."""


def calibrate_folder(
    folder: Path,
    wanted: Wanted,
    *,
    on: Sequence[str],
    group_by: str | None = None,
    cost_on: Sequence[str] = (),
    context: int | None = None,
    stride: int | None = None,
    console: Console | None = None,
) -> None:
    """Calibrate a saved extension, save the thresholds with it, and print their promise and its
    cost. Options are those of the command."""
    console = console or Console()
    corpora = [corpus_of(text, "--on") for text in on]
    if not corpora:
        do = "add --on source:NAME=FILE, text like what must not change"
        raise UserError("nothing to calibrate on", do=do)
    targets = [corpus_of(text, "--cost-on") for text in cost_on]
    wrong = next((it.name for it in targets if it.role != "target"), None)
    if wrong is not None:
        raise UserError(f"--cost-on {wrong}", got="source text", allowed="target:NAME=FILE")
    saved, unknown = load_saved(folder), list[str]()
    windows = windows_for(saved, context, stride)
    doing = "measuring what the gates do"
    announce(console, doing)
    with console.status(doing) as status:
        done = 0

        def on_tokens(num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            status.update(f"{doing}: {done:,} tokens read")

        found, calibration = calibrate_saved(
            saved,
            corpora,
            windows,
            wanted,
            tokenising=RunProgress(console).tokenising,
            group_by=group_by,
            cost_on=targets,
            on_tokens=on_tokens,
            on_unknown=unknown.append,
        )
    save_calibration(saved, found, calibration)
    print_warnings(unknown, console=console)
    print_promise(calibration.promise, found, console=console)
    print_line(f"thresholds: part of the extension in {saved.weights}", console=console)
    _say_what_the_record_is_of(saved, console)


def remove(folder: Path) -> None:
    """Remove the thresholds from an extension, and print that."""
    saved = load_saved(folder)
    remove_calibration(saved)
    console = Console()
    print_line(f"{saved.weights}: as it was trained", console=console)
    _say_what_the_record_is_of(saved, console)


def _say_what_the_record_is_of(saved: Saved, console: Console) -> None:
    run = RunFolder(saved.folder)
    if run.is_finished and not read_record(run.record).is_current:
        line = f"its record was measured before; anew: neutral evaluate {run.path} --into-record"
        print_line(line, console=console)


def print_promise(promise: Promise, found: Found, *, console: Console) -> None:
    """Print the promise as a sentence, the measurements behind it, its cost, and the thresholds."""
    console.print(f"\n[bold]{promise.sentence}[/bold]", highlight=False)
    console.print(sets_table(promise))
    if promise.costs:
        console.print(costs_table(promise))
        print_warnings(costly(promise.costs), console=console)
    else:
        print_warnings(["the cost is unknown without target text; add --cost-on"], console=console)
    values = ", ".join(f"{value:.3g}" for value in found.position.values.values())
    over = f", of the mean over {promise.over} tokens" if promise.over > 1 else ""
    console.print(f"threshold ({promise.form}{over}): {values}", highlight=False)


def sets_table(promise: Promise) -> Table:
    """For each source text, before and after calibration: the share that the promise bounds, and
    the share of tokens on which the extension is skipped."""
    about = "tokens with an open gate"
    if promise.kind == "documents":
        about = f"documents worse by over {promise.rise_percent:g} %"
    numbers = ["units", about, "extension skipped"]
    table = new_table("on the units that were tested", ["text"], numbers)
    for text in promise.sets:
        loss = f"{100 * text.trained_loss:.2f} -> {100 * text.loss:.2f} %"
        exact = f"{100 * text.trained_exact_share:.1f} -> {100 * text.exact_share:.1f} %"
        table.add_row(text.name, f"{text.num_units:,}", loss, exact)
    return table


def costly(costs: Sequence[TargetCost]) -> list[str]:
    """A warning for each target text that loses much of what was learnt."""
    do = "a larger --over tells target from source text better, a larger --at-most asks for less"
    return [
        f"on {cost.name} {cost.points:.0f} % of what was learnt is lost; {do}"
        for cost in costs
        if cost.points is not None and cost.points > MUCH_LOST_PERCENT
    ]


def costs_table(promise: Promise) -> Table:
    """For each target text, bits per byte before and after calibration, and the share of the
    learning that is lost."""
    columns = ["backbone", "as trained", "calibrated", "share of learning lost"]
    table = new_table("bits per byte of target text", ["text"], columns)
    for cost in promise.costs:
        bits = (f"{value:.4f}" for value in (cost.backbone, cost.trained, cost.calibrated))
        lost = "-" if cost.points is None else f"{cost.points:.1f} %"
        table.add_row(cost.name, *bits, lost)
    return table


def share_of(text: str, option: str) -> float:
    """Parse a share such as "1%" or "0.01". Raises a UserError, which names `option`, for anything
    else."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise UserError(option, got=text, allowed="a share, as 1% or 0.01") from error


def confidence_of(text: str) -> float | None:
    """Parse a confidence as `share_of` does; None for "average"."""
    return None if text == AVERAGE else share_of(text, "--confidence")
