"""Prints lines that hold paths or commands, to be copied: nothing in them is markup, and no line
break is put into them."""

from rich.console import Console
from rich.text import Text


def print_line(line: str, *, console: Console | None = None, style: str = "") -> None:
    """Print `line` as it is."""
    (console or Console()).print(Text(line, style=style), soft_wrap=True)
