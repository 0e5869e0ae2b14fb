"""The summary to paste into a model card: verdict, table and pictures, as Markdown."""

import re
from collections.abc import Mapping, Sequence

from neutral_residues.report.aggregate import Section
from neutral_residues.report.benchmarks import benchmark_table
from neutral_residues.report.breakdown import moved
from neutral_residues.report.load import Collection
from neutral_residues.report.tables import Table, equal_learning_table, summary_table
from neutral_residues.report.tasks import task_sentences, tasks_table
from neutral_residues.report.verdict import verdict

EQUAL_LEARNING = (
    "At equal learning (where a method has one point, on a straight line from the backbone, which"
    " overstates):"
)

NUMBERS = (
    "Bits per byte on held-out text. Forgetting is the change on source text in % of the"
    " backbone's; ± is one standard deviation over seeds."
)

TASKS = (
    "Tasks (change of the score on the same items, shares in percentage points, ± half of the 95 %"
    " interval):"
)


def summary(collection: Collection, sections: Sequence[tuple[Section, Mapping[str, str]]]) -> str:
    """The whole text.

    Args:
        sections: each with what its pictures show -> their file names.
    """
    lines: list[str] = []
    for section, pictures in sections:
        lines += [
            f"## What was learnt, what was forgotten: {escaped(section.name)}",
            "",
            escaped(verdict(section)),
            "",
        ]
        lines += [*markdown_table(summary_table(section)), ""]
        equal = equal_learning_table(section)
        lines += [EQUAL_LEARNING, "", *markdown_table(equal), ""] if equal else []
        why = moved(section)
        lines += [escaped(why), ""] if why else []
        tasks = tasks_table(section)
        sentences = [
            line for sentence in task_sentences(section) for line in (escaped(sentence), "")
        ]
        lines += [TASKS, "", *sentences, *markdown_table(tasks), ""] if tasks else []
        lines += [line for title, file in pictures.items() for line in (f"![{title}]({file})", "")]
    for benchmark in collection.benchmarks:
        lines += [
            f"## {escaped(benchmark.title)}",
            "",
            *markdown_table(benchmark_table(benchmark)),
            "",
        ]
    if collection.unfinished:
        lines += ["## Runs without a result", "", "| run | state | reason |", "|---|---|---|"]
        for cell in collection.unfinished:
            state = "not done yet" if cell.reason is None else "failed"
            lines.append(
                f"| {escaped(cell.label or cell.origin)} | {state} | {escaped(cell.reason or '')} |"
            )
        lines.append("")
    if sections:
        lines.append(NUMBERS)
    return "\n".join(lines).rstrip("\n") + "\n"


def markdown_table(table: Table) -> list[str]:
    """A table, line by line."""
    lines = [_line([column.text for column in table.columns])]
    lines.append("|---|" + "---:|" * (len(table.columns) - 1))
    lines += [_line([row.name, *(cell.text for cell in row.cells)]) for row in table.rows]
    return lines


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell) for cell in cells) + " |"
