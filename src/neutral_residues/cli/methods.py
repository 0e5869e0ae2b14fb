"""`neutral methods`: prints the table of methods."""

from rich.console import Console
from rich.table import Table

from neutral_residues.methods.table import METHODS, RECIPE_WIDTH


def print_methods() -> None:
    """Print for each method what is trained, what a budget means, and what its result can be used
    for."""
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    for row in METHODS:
        facts = [row.size_in_words]
        with_muon = ", Muon" if row.recipe.get("training.optimizer") == "muon" else ""
        rate = row.learning_rate
        facts += [f"learning rate {rate:g}{with_muon}"] if rate is not None else []
        facts += [f"afterwards: {', '.join(row.afterwards)}"] if row.afterwards else []
        details = f"[dim]{'; '.join(facts)}\n{row.paper}[/dim]"
        table.add_row(row.name, f"{row.title}: {row.trains}\n{details}")
    console = Console()
    console.print(table)
    console.print(
        f"Learning rates are for a backbone of width {RECIPE_WIDTH} and shrink as 1/width.\nmerge:"
        " folds into the backbone's matrices. skip: tokens whose gate is 0 need no extra work."
        " stock: what is saved, or exported (neutral-sigmoid with residues.head_rank: 0), is a"
        " model that Transformers knows.",
        highlight=False,
    )
