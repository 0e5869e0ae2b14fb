"""`neutral generate`: completes a prompt with the backbone and with the extended model."""

from pathlib import Path
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from neutral_residues.evaluation.saved import load_saved


def print_both(folder: Path, prompt: str, **settings: Any) -> None:
    """Print both completions of a prompt side by side; `settings` are those of `generate_both`."""
    saved, console = load_saved(folder), Console()
    (sample,) = saved.completions([prompt], **settings)
    width = max(30, console.width // 2 - 1)
    sides = {"backbone": sample.backbone, "with extension": sample.extended}
    panels = [Panel(Text(text), title=title, width=width) for title, text in sides.items()]
    console.print(Text(prompt, style="bold"))
    console.print(Columns(panels, padding=(0, 1)))
