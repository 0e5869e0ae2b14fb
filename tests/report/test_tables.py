"""Tables: what is written and what it sorts by."""

from neutral_residues.report.tables import (
    Table,
    beginnings_table,
    cost_table,
    equal_learning_table,
    points_table,
    summary_table,
)
from neutral_residues.results.record import Cost
from synthetic import comparison_records, make_record, make_section


def cells(table: Table) -> list[list[str]]:
    return [[row.name, *(cell.text for cell in found)] for row, found in table.lines]


def test_every_point_has_a_row_and_empty_columns_are_left_out() -> None:
    records = comparison_records()
    table = points_table(make_section(*records))
    assert len(table.rows) == 7 * 3 + 4
    columns = {column.name: column.cells for column in table.columns}
    chosen = [row.name for row in table.rows if not row.is_dim]
    assert len(chosen) == 7 + 4
    index = next(n for n, row in enumerate(table.rows) if row.name == "lora" and not row.is_dim)
    for name, text in {
        "learning rate": "0.001",
        "share of what was learnt": "–",
        "seeds": "2",
        "forgetting, mean": "+7.55 ± 0.07",
        "bits per byte, fr": "2.1300 ± 0.0141",
        "bits per byte, validation": "2.2200 ± 0.0000",
        "source tokens with all gates 0": "–",
        "new weights": "20.0",
        "on the Pareto front": "–",
        "by validation": "chosen",
    }.items():
        assert columns[name][index].text == text, name
    few = points_table(make_section(make_record("lora")))
    left_out = {
        "share of what was learnt",
        "of fine-tuning's drop",
        "source tokens with all gates 0",
    }
    left_out |= {"bits per byte, validation", "by validation"}
    assert not left_out & {column.name for column in few.columns}


def test_gates_on_the_wrong_side_in_the_table_of_points() -> None:
    table = points_table(make_section(make_record(), make_record("lora")))
    columns = {column.name: [cell.text for cell in column.cells] for column in table.columns}
    # Five layers of two source sets and of the target, see `synthetic`.
    assert columns["gates open on source"] == ["10.5", "–"]
    assert columns["gates closed on target"] == ["7.0", "–"]


def test_equal_learning() -> None:
    table = equal_learning_table(
        make_section(
            make_record(forgetting=0.5, bits=2.5),
            make_record("lora", forgetting=6.0, bits=2.0),
            make_record("llama-pro", forgetting=0.1, bits=3.0),
        )
    )
    assert table is not None
    assert cells(table) == [
        ["neutral", "+0.50", "1.0"],
        ["lora", "+4.50", "9.0"],
        ["llama-pro", "not reached, 3.000 at best", "–"],
    ]
    assert equal_learning_table(make_section(make_record())) is None


def test_beginnings_of_texts() -> None:
    table = beginnings_table(make_section(make_record(), make_record(seed=1), make_record("lora")))
    assert table is not None
    assert [row.name for row in table.rows] == ["neutral", "lora"]
    first = {column.heading: column.cells[0].text for column in table.columns}
    assert first == {
        "en, change [%], lower is better": "+0.25 ± 0.00",
        "en, KL [nats per token], lower is better": "0.0100 ± 0.0000",
        "fr, change [%], lower is better": "−20.00 ± 0.00",
    }
    assert beginnings_table(make_section(make_record(beginnings={}))) is None


def test_costs_hold_their_values_in_the_unit_of_the_heading() -> None:
    cost = make_record().cost.model_copy(update={"peak_memory_bytes": 3 * 2**30, "threads": None})
    record = make_record(cost=cost.model_copy(update={"new_weights": 1_500_000}))
    columns = {column.name: column for column in cost_table(make_section(record)).columns}
    assert "threads" not in columns
    memory, added = columns["peak memory"], columns["added"]
    assert (memory.unit, memory.cells[0].text, memory.cells[0].value) == ("GiB", "3.00", 3.0)
    assert (added.cells[0].text, added.cells[0].value) == ("1.5", 1.5)
    assert cost_table(make_section(make_record(cost=Cost()))).columns == ()


def test_the_summary_has_a_row_for_each_curve() -> None:
    rows = cells(summary_table(make_section(*comparison_records())))
    assert [
        "neutral",
        "0.001",
        "2",
        "20.0",
        "+0.45 ± 0.07",
        "2.1100 ± 0.0141",
        "−47.25 ± 0.35",
    ] in rows
    assert len(rows) == 7 + 4
