"""Records in, a folder with page, summary and pictures out, complete or not at all."""

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
    """What was written.

    Attributes:
        page: the HTML file; summary and pictures lie next to it.
        verdicts: of each section, in two sentences.
        num_unfinished: runs that failed or are not done.
    """

    page: Path
    verdicts: tuple[str, ...]
    num_unfinished: int


def write_report(paths: Sequence[Path], output: Path | None = None) -> Report:
    """Write the report of all records behind `paths`; an earlier report is replaced.

    Args:
        paths: records, benchmarks, output folders of runs, folders of comparisons.
        output: folder for the report; None is `report` inside the one folder that was given, else
            runs/report.

    Raises:
        UserError: if a path cannot be reported, records do not compare, or the output folder holds
            something else.
    """
    output = output or _default_output(paths)
    _check_is_ours(output)
    collection = collect(paths)
    found = sections(collection.found)
    with whole_folder(output) as folder:
        write_text(folder / PAGE, render(collection, found))
        pictures = [
            draw_section(section, folder, prefix)
            for section, prefix in zip(found, prefixes(found), strict=True)
        ]
        write_text(folder / SUMMARY, summary(collection, found, pictures))
    return Report(output / PAGE, tuple(map(verdict, found)), len(collection.unfinished))


def _default_output(paths: Sequence[Path]) -> Path:
    """`report` inside the one run or comparison that was given, else runs/report."""
    inside = len(paths) == 1 and any((paths[0] / name).is_file() for name in (RECORD, COMPARISON))
    return paths[0] / "report" if inside else DEFAULT


def _check_is_ours(output: Path) -> None:
    """Raise unless the folder is new, empty, or an earlier report and nothing else."""
    with disk_errors(output):
        inside = sorted(path.name for path in output.iterdir()) if output.exists() else []
    ours = {PAGE, SUMMARY}
    foreign = [n for n in inside if n not in ours and Path(n).suffix not in (".png", ".svg")]
    if inside and (foreign or not _is_our_page(output / PAGE)):
        raise UserError(
            f"folder {output} is not an earlier report",
            got=(foreign or inside)[0],
            do="choose another folder with --output",
        )


def _is_our_page(page: Path) -> bool:
    if not page.is_file():
        return False
    return GENERATOR in page.read_text(encoding="utf-8", errors="replace")[:2000]
