"""What `neutral compare` prints while it runs."""

import io
from pathlib import Path

from rich.console import Console

from neutral_residues.cli.compare import CompareDisplay
from neutral_residues.compare.grid import expand
from tiny_comparison import comparison


def test_a_terminal_shows_the_last_line_of_each_running_cell(tmp_path: Path) -> None:
    one, other = expand(comparison(tmp_path, seeds=[0, 1])).trained
    log = tmp_path / "log"
    log.write_text("step 1 of 9\nstep 2 of 9\n")
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=True, width=120)
    with CompareDisplay(console) as display:
        display.on_begin(2)
        display.on_cell_begin(one, log)
        display.on_cell_begin(other, log)
        display.progress.refresh()
        shown = printed.getvalue()
        display.on_cell_end(one, "no space left on the disk", 1.0)
    assert "step 2 of 9" in shown
    assert "step 1 of 9" not in shown
    assert f"{one.name}  failed: no space left on the disk" in printed.getvalue()
    assert "1/2" in printed.getvalue()
