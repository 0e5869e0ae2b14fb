"""`neutral methods`: the table of methods."""

from rich.console import Console
from rich.table import Table

from neutral_residues.methods.table import METHODS, RECIPE_WIDTH


def list_methods(*, console: Console | None = None) -> None:
    """Print the table of methods."""
    console = console or Console()
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for row in METHODS:
        facts = [f"the budget becomes {row.size}" if row.size else "adds no weights"]
        facts += [f"learning rate {row.learning_rate:g}"] if row.learning_rate is not None else []
        facts += [f"afterwards: {', '.join(row.afterwards)}"] if row.afterwards else []
        table.add_row(
            row.name, f"{row.title}: {row.trains}\n[dim]{'; '.join(facts)}\n{row.paper}[/dim]"
        )
    console.print(table)
    console.print(
        f"Learning rates are for a backbone of width {RECIPE_WIDTH} and shrink as 1/width.\nmerge:"
        " folds into the backbone's matrices. skip: tokens whose gate is 0 need no extra work."
        " stock: what is saved, or exported, is a model that Transformers knows.",
        highlight=False,
    )
