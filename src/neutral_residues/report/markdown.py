"""The summary to paste into a model card: verdict, tables and pictures, as Markdown."""

import re
from collections.abc import Iterator, Mapping, Sequence

from neutral_residues.report.aggregate import Section
from neutral_residues.report.benchmarks import benchmark_table
from neutral_residues.report.load import Collection
from neutral_residues.report.tables import (
    Table,
    equal_learning_table,
    summary_table,
    unfinished_table,
)
from neutral_residues.report.tasks import tasks_table
from neutral_residues.report.verdict import moved, task_sentences, verdict

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


def summary(
    collection: Collection, sections: Sequence[Section], pictures: Sequence[Mapping[str, str]]
) -> str:
    """The whole text.

    Args:
        pictures: of each section, what they show -> their file names.
    """
    parts: list[str] = []
    for section, drawn in zip(sections, pictures, strict=True):
        parts += _section(section)
        parts += [f"![{title}]({file})" for title, file in drawn.items()]
    for benchmark in collection.benchmarks:
        table = markdown_table(benchmark_table(benchmark))
        parts += [f"## {escaped(benchmark.title)}", table]
    if collection.unfinished:
        table = markdown_table(unfinished_table(collection.unfinished))
        parts += ["## Runs without a result", table]
    if sections:
        parts.append(NUMBERS)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## What was learnt, what was forgotten: {escaped(section.name)}"
    yield escaped(verdict(section))
    yield markdown_table(summary_table(section))
    equal = equal_learning_table(section)
    if equal is not None:
        yield EQUAL_LEARNING
        yield markdown_table(equal)
    why = moved(section)
    if why:
        yield escaped(why)
    tasks = tasks_table(section)
    if tasks is not None:
        yield TASKS
        yield from map(escaped, task_sentences(section))
        yield markdown_table(tasks)


def markdown_table(table: Table) -> str:
    """A table, line by line."""
    return "\n".join(
        [
            _line([table.first, *(column.heading for column in table.columns)]),
            "|---|" + "---:|" * len(table.columns),
            *(_line([row.name, *(cell.text for cell in cells)]) for row, cells in table.lines),
        ]
    )


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
