"""The command: records in, a folder with page, summary and pictures out, whole or not at all."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from neutral_residues.config.comparison import COMPARISON
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, whole_folder, write_text
from neutral_residues.report.aggregate import sections
from neutral_residues.report.load import RECORD, collect
from neutral_residues.report.markdown import summary
from neutral_residues.report.page import GENERATOR, render
from neutral_residues.report.static_figures import draw_pictures, prefixes
from neutral_residues.report.verdict import verdict

PAGE, SUMMARY = "index.html", "summary.md"
DEFAULT = Path("runs/report")


def write_report(
    paths: Sequence[Path], output: Path | None = None, *, console: Console | None = None
) -> Path:
    """Write the report of all records behind `paths` and print its verdict; an earlier report is
    replaced.

    Args:
        paths: record files, output folders of runs, folders of comparisons.
        output: folder for the report; None is `report` inside the one folder that was given, else
            runs/report.

    Returns:
        The page.

    Raises:
        UserError: if a path cannot be reported, records do not compare, or the output folder holds
            something else.
    """
    console = console or Console()
    output = output or default_output(paths)
    _check_is_ours(output)
    collection = collect(paths)
    found = sections(collection.found)
    with whole_folder(output) as folder:
        write_text(folder / PAGE, render(collection, found))
        pictures = [draw_pictures(section, folder, prefix) for section, prefix in prefixes(found)]
        write_text(folder / SUMMARY, summary(collection, list(zip(found, pictures, strict=True))))
    for section in found:
        console.print(verdict(section), highlight=False, markup=False)
    if collection.unfinished:
        console.print(f"{len(collection.unfinished)} runs failed or are not done", highlight=False)
    console.print(f"\npage: {output / PAGE}", highlight=False, markup=False, soft_wrap=True)
    return output / PAGE


def default_output(paths: Sequence[Path]) -> Path:
    """`report` inside the one run or comparison that was given, else runs/report."""
    inside = len(paths) == 1 and any((paths[0] / name).is_file() for name in (RECORD, COMPARISON))
    return paths[0] / "report" if inside else DEFAULT


def _check_is_ours(output: Path) -> None:
    """Raise unless the folder is new, empty, or an earlier report and nothing else."""
    if not output.exists():
        return
    with disk_errors(output):
        inside = sorted(path.name for path in output.iterdir())
    foreign = [
        name
        for name in inside
        if name not in (PAGE, SUMMARY) and Path(name).suffix not in (".png", ".svg")
    ]
    page = output / PAGE
    if not inside:
        return
    if (
        foreign
        or not page.is_file()
        or GENERATOR not in page.read_text(encoding="utf-8", errors="replace")[:2000]
    ):
        do = "choose another folder with --output"
        raise UserError(
            f"folder {output} is not an earlier report", got=(foreign or inside)[0], do=do
        )
