"""Writes the report of records into a folder: page, summary and figures, all of them or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neutral_residues.config.comparison import COMPARISON
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, whole_folder, write_text
from neutral_residues.report.aggregate import sections
from neutral_residues.report.load import RECORD, collect
from neutral_residues.report.markdown import summary
from neutral_residues.report.page import GENERATOR, render
from neutral_residues.report.static_figures import draw_section, prefixes
from neutral_residues.report.verdict import verdict

PAGE, SUMMARY = "index.html", "summary.md"
DEFAULT = Path("runs/report")


@dataclass(frozen=True)
class Report:
    """The files that were written."""

    page: Path  # the HTML file; summary and figures are next to it
    verdicts: tuple[str, ...]  # for each section, two sentences
    num_unfinished: int  # runs that failed or are not done


def write_report(paths: Sequence[Path], output: Path | None = None) -> Report:
    """Write the report of all records and benchmarks behind `paths`; an earlier report is replaced.

    `output` is a folder; None is `report` inside the one run or comparison that was given, else
    runs/report. A UserError if a path cannot be reported, records are not comparable, or the folder
    holds something else.
    """
    output = output or _default_output(paths)
    _check_is_ours(output)
    collection = collect(paths)
    found = sections(collection.found)
    with whole_folder(output) as folder:
        write_text(folder / PAGE, render(collection, found))
        names = zip(found, prefixes(found), strict=True)
        pictures = [draw_section(section, folder, prefix) for section, prefix in names]
        write_text(folder / SUMMARY, summary(collection, found, pictures))
    return Report(output / PAGE, tuple(map(verdict, found)), len(collection.unfinished))


def _default_output(paths: Sequence[Path]) -> Path:
    inside = len(paths) == 1 and any((paths[0] / name).is_file() for name in (RECORD, COMPARISON))
    return paths[0] / "report" if inside else DEFAULT


def _check_is_ours(output: Path) -> None:
    """Raise a UserError unless the folder is new, empty, or holds only an earlier report."""
    with disk_errors(output):
        inside = sorted(path.name for path in output.iterdir()) if output.exists() else []
        is_page = (output / PAGE).is_file()
        page = (output / PAGE).read_text("utf-8", errors="replace") if is_page else ""
    ours = {PAGE, SUMMARY}
    foreign = [n for n in inside if n not in ours and Path(n).suffix not in (".png", ".svg")]
    if inside and (foreign or GENERATOR not in page[:2000]):
        raise UserError(
            f"folder {output} is not an earlier report",
            got=(foreign or inside)[0],
            do="choose another folder with --output",
        )
