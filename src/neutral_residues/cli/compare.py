"""`neutral compare`: what is printed of a comparison."""

from rich.console import Console
from rich.text import Text

from neutral_residues.compare.runner import Outcome
from neutral_residues.config.comparison import CompareConfig


def print_outcome(
    outcome: Outcome, config: CompareConfig, *, console: Console | None = None
) -> None:
    """How many cells are done, which failed and why, and what to type next."""
    console = console or Console()
    console.print(
        f"{len(outcome.records)} cells done, {len(outcome.failures)} failed, in {config.output}"
    )
    for name, reason in outcome.failures.items():
        console.print(Text(f"  {name}: {reason}"), soft_wrap=True)
    if outcome.records:
        console.print(f"the page: neutral report {config.output}", highlight=False)
