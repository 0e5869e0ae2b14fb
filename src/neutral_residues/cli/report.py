"""Prints what a report says and where it lies."""

from pathlib import Path

from rich.console import Console

from neutral_residues.report.build import write_report


def run_report(paths: list[Path], output: Path | None, *, console: Console | None = None) -> None:
    """Write the report, print its verdicts and the path of its page."""
    console = console or Console()
    report = write_report(paths, output)
    for verdict in report.verdicts:
        console.print(verdict, highlight=False, markup=False)
    if report.num_unfinished:
        console.print(f"{report.num_unfinished} runs failed or are not done", highlight=False)
    console.print(f"\npage: {report.page}", highlight=False, markup=False, soft_wrap=True)
