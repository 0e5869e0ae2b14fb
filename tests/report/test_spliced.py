"""What a switch of language costs, and the gates after it, over seeds."""

import pytest

from neutral_residues.report.spliced import spliced_plots, spliced_table
from synthetic import make_record, make_section


def test_both_directions_against_the_backbone_in_either_text() -> None:
    table = spliced_table(make_section(make_record(), make_record("lora")))
    assert table is not None
    assert [row.name for row in table.rows] == ["neutral", "lora"]
    first = {column.name: column.cells[0].text for column in table.columns}
    assert first == {
        "en after fr": "1.2240",
        "en after fr, change": "+2.00",
        "en alone, change": "+1.00",
        "fr after en": "2.2000",
        "fr after en, change": "−50.00",
        "fr alone, change": "−25.00",
        "en after fr, gates closed from token 8 on": "88.3",
        "fr after en, gates closed from token 8 on": "8.0",
    }


def test_without_gates_no_column_speaks_of_them() -> None:
    table = spliced_table(make_section(make_record("lora")))
    assert table is not None
    assert not any("gates" in column.name for column in table.columns)


def test_gates_by_tokens_since_the_switch() -> None:
    records = [make_record(seed=seed) for seed in (0, 1)]
    (plot,) = spliced_plots(make_section(*records, make_record("lora")))
    assert plot.title == "neutral: gates after a switch"
    source, target = plot.figure.data
    assert (source.name, target.name) == ("en after fr", "fr after en")
    assert list(source.y) == pytest.approx([20, 40, 60, 80, 90, 95])
    assert list(target.y) == pytest.approx([60, 30, 20, 10, 8, 6])
    assert list(plot.figure.layout.xaxis.ticktext) == ["1", "2-3", "4-7", "8-15", "16-31", "32+"]


def test_nothing_is_shown_where_it_was_not_measured() -> None:
    section = make_section(make_record(spliced=None))
    assert spliced_table(section) is None
    assert spliced_plots(section) == []
