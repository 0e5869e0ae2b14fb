"""The summary to paste into a model card: verdict, tables and figures, as Markdown."""

import re
from collections.abc import Mapping, Sequence

from neutral_residues.report.aggregate import Section
from neutral_residues.report.benchmarks import benchmark_table
from neutral_residues.report.load import Collection
from neutral_residues.report.page import environment
from neutral_residues.report.promises import promises_table
from neutral_residues.report.tables import equal_learning_table, summary_table, unfinished_table
from neutral_residues.report.tasks import tasks_table
from neutral_residues.report.verdict import moved, task_sentences, verdict


def summary(
    collection: Collection, sections: Sequence[Section], pictures: Sequence[Mapping[str, str]]
) -> str:
    """The whole text; `pictures` has, for each section, what a figure shows -> its file name."""
    tables = (summary_table, equal_learning_table, tasks_table, promises_table)
    parts = (*tables, verdict, moved, task_sentences)
    text = (
        environment(autoescape=False, escaped=escaped)
        .get_template("summary.md.jinja")
        .render(
            {part.__name__: part for part in (*parts, benchmark_table)},
            sections=list(zip(sections, pictures, strict=True)),
            benchmarks=collection.benchmarks,
            unfinished=unfinished_table(collection.unfinished),
        )
    )
    return text.strip("\n") + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\|<>`*_\[\]])", r"\\\1", " ".join(text.split()))
