"""`neutral generate`: backbone and extended model on one prompt, side by side."""

from pathlib import Path

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from neutral_residues.evaluation.generate import generate_both
from neutral_residues.evaluation.saved import load_saved


def generate_folder(
    folder: Path,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    console: Console | None = None,
) -> None:
    """Print what backbone and extension make of the same prompt, side by side."""
    console = console or Console()
    saved = load_saved(folder)
    sample = generate_both(
        saved.model,
        saved.tokenizer,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        reference=saved.reference,
    )
    width = max(30, console.width // 2 - 1)
    panels = [
        Panel(Text(text), title=title, width=width)
        for title, text in (("backbone", sample.backbone), ("with extension", sample.extended))
    ]
    console.print(Text(prompt, style="bold"))
    console.print(Columns(panels, padding=(0, 1)))
