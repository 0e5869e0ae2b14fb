"""Lines that are copied from the screen."""

import io

from rich.console import Console

from neutral_residues.cli.lines import print_line


def test_a_path_is_printed_as_it_is() -> None:
    printed = io.StringIO()
    path = "runs/[bold]french[/bold]/" + "x" * 40
    print_line(f"record: {path}", console=Console(file=printed, width=20))
    assert printed.getvalue() == f"record: {path}\n"
