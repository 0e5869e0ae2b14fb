"""Why the numbers moved: bars by kind of token, and the worst documents."""

import pytest

from neutral_residues.report.breakdown import change_plots, worst_documents
from synthetic import make_record, make_section


def test_bars_are_the_changes_of_each_kind() -> None:
    section = make_section(make_record(forgetting=10.0, bits=3.5))
    plots = {plot.title: plot for plot in change_plots(section)}
    assert list(plots) == ["en (source)", "fr (target)"]
    plot = plots["en (source)"]
    drawn = {trace.name: trace.x[0] for trace in plot.figure.data if trace.meta}
    # en rose by 5 % of 1.0 bits.
    expected = {"punctuation": -0.005, "frequent words": 0.025, "rare words": 0.03}
    assert drawn == pytest.approx(expected)
    assert plot.table is not None
    assert [column.cells[0].text for column in plot.table.columns] == [
        "+0.0500",
        "−0.0050",
        "+0.0250",
        "+0.0300",
    ]


def test_worst_documents() -> None:
    table = worst_documents(make_section(make_record()))["en (source)"]
    (line,) = table.lines
    assert [cell.text for cell in line[1][:4]] == ["5", "+0.500", "1.000", "1.500"]
    assert table.columns[-1].is_text


def test_records_without_a_breakdown() -> None:
    record = make_record()
    sets = {
        name: result.model_copy(update={"breakdown": None}) for name, result in record.sets.items()
    }
    section = make_section(record.model_copy(update={"sets": sets}))
    assert change_plots(section) == []
    assert worst_documents(section) == {}
