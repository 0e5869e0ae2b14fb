"""Figures of a section: gates by layer, with the output head as the last."""

import pytest

from neutral_residues.report.gate_heatmap import heat_texts
from neutral_residues.report.plots import gates_by_layer, layers
from neutral_residues.results.record import Record
from synthetic import make_record, make_section


def with_head(record: Record, num_layers: int = 5) -> Record:
    """Its layers numbered from 1, and then the head."""
    values = record.model_dump()
    for found in values["sets"].values():
        layer = found["layers"][0]
        numbers = [*range(1, num_layers + 1), "head"]
        found["layers"] = [layer | {"layer": number} for number in numbers]
        del found["closed_gates_share"]
    for text in values["gates"]:
        text["layers"] = [1, 2, 3, 4, "head"]
    return Record.model_validate(values)


def test_gates_open_on_source_text_and_closed_on_target_text() -> None:
    (plot,) = gates_by_layer(make_section(make_record(), make_record("lora")))
    lines = {trace.name: list(trace.y) for trace in plot.figure.data}
    assert lines["en, open"] == pytest.approx([6, 7, 8, 9, 10])
    assert lines["wiki, open"] == pytest.approx([11, 12, 13, 14, 15])
    assert lines["fr, closed"] == pytest.approx([9, 8, 7, 6, 5])


def test_the_head_is_the_last_layer() -> None:
    section = make_section(with_head(make_record()))
    for plot in layers(section):
        axis = plot.figure.layout.xaxis
        assert list(axis.ticktext) == ["1", "2", "3", "4", "5", "head"]
        assert list(axis.tickvals) == [1, 2, 3, 4, 5, 6]
        assert list(plot.figure.data[0].x) == [1, 2, 3, 4, 5, 6]
        assert [row.name for row in plot.table.rows][-2:] == ["layer 5", "head"]
    assert heat_texts(section)[0].tokens[0].title.splitlines()[-1].startswith("head: ")


def test_of_many_layers_some_are_named() -> None:
    (plot, _) = layers(make_section(with_head(make_record(), 30)))
    assert list(plot.figure.layout.xaxis.ticktext)[-2:] == ["27", "head"]
    assert len(plot.figure.layout.xaxis.ticktext) == 8
    assert len(plot.figure.data[0].x) == 31
