"""`neutral export`: a saved extension into a folder that other programs load."""

from pathlib import Path

from rich.console import Console

from neutral_residues.errors import UserError
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.export.export import check_target, export_model
from neutral_residues.export.formats.table import find_format
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.units import human_bytes


def export_folder(
    folder: Path,
    *,
    to: str,
    output: Path,
    dtype: str,
    text: str = "",
    console: Console | None = None,
) -> None:
    """Export the extension in `folder` and print how far the result is from the live model."""
    console = console or Console()
    row = find_format(to)
    check_target(output, dtype=dtype)
    saved = load_saved(folder)
    if saved.reference is not None:
        where = RunFolder(folder).extension
        raise UserError(
            f"already a stock model in {where}",
            got=f"method {saved.config.method}" if saved.config else None,
        )
    with console.status(f"exporting to {to}, and comparing it in a fresh process"):
        difference = export_model(
            saved.model,
            output,
            to=to,
            dtype=dtype,
            tokenizer=saved.tokenizer,
            text=text,
            copy=False,
        )
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    console.print(f"{output}: {row.title}, {human_bytes(size)}", highlight=False)
    console.print(f"against the live model: {difference.describe()}", highlight=False)
