"""`neutral export`: writes an extension in a format that other programs load."""

from pathlib import Path

from peft import PeftModel
from rich.console import Console

from neutral_residues.cli.lines import print_line
from neutral_residues.errors import UserError
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.export.export import check_target, export_model
from neutral_residues.export.formats.table import find_format
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.units import human_bytes


def export_folder(folder: Path, output: Path, *, to: str, dtype: str, text: str) -> None:
    """Export an extension to `output`, and print the size of the export and the difference of its
    outputs from those of the live model. Options are those of the command.

    Raises:
        UserError: for an unknown format, an output folder that exists, a method whose result is a
            stock model already, and as `export_model`.
    """
    row, console = find_format(to), Console()
    check_target(output, dtype=dtype)
    saved = load_saved(folder)
    if not isinstance(saved.model, PeftModel):
        what = f"already a stock model in {RunFolder(folder).extension}"
        raise UserError(what, got=f"method {saved.config.method}" if saved.config else None)
    with console.status(f"exporting to {to}, and comparing it in a fresh process"):
        difference = export_model(
            saved.model,
            output,
            to=to,
            dtype=dtype,
            text=text,
            tokenizer=saved.tokenizer,
            end_of_text=saved.end_of_text,
            copy=False,
        )
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print_line(f"{output}: {row.title}, {human_bytes(size)}", console=console)
    console.print(f"against the live model: {difference.describe()}", highlight=False)
