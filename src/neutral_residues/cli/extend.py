"""`neutral extend`: warnings about the texts of a new run, the run, and its result."""

from rich.console import Console
from rich.text import Text

from neutral_residues.advice.text_statistics import text_warnings
from neutral_residues.cli.tables import print_summary
from neutral_residues.config.run import RunConfig
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress
from neutral_residues.training.setup import Setup, ranks


def extend_run(config: RunConfig, *, advice: bool) -> None:
    """Train and measure; the main process prints."""
    is_main = ranks().is_main_process
    console = Console(stderr=True, quiet=not is_main)
    setup = Setup.of(config, tokenising=RunProgress(console).tokenising)
    folder = RunFolder(setup.config.output)
    if advice and is_main and not folder.config.is_file():
        folder.check(setup.config)
        setup.prepare()
        print_warnings(text_warnings(setup), console=console)
    record = extend(setup, progress=RunProgress(console))
    if is_main:
        print_summary(record, setup.config.output)


def print_warnings(lines: list[str], *, console: Console) -> None:
    """One warning a line."""
    for line in lines:
        console.print(Text.assemble(("warning: ", "bold yellow"), line))
