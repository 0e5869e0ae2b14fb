"""Tasks in the report: seeds averaged, intervals not narrowed by them, other items refused."""

import pytest

from neutral_residues.errors import UserError
from neutral_residues.report.tasks import task_plots, task_results, tasks_table
from synthetic import make_record, make_section, score, two_seeds


def test_seeds_are_averaged_and_the_interval_stays_as_wide() -> None:
    results = {(r.point.label, r.score.name): r for r in task_results(two_seeds())}
    assert list(results) == [("neutral", "blimp-en"), ("neutral", "clams-fr"), ("lora", "clams-fr")]
    ours = results["neutral", "clams-fr"]
    assert (ours.difference.mean, ours.difference.n) == (pytest.approx(3.0), 2)
    assert (ours.low, ours.high) == (pytest.approx(1.0), pytest.approx(5.0))
    assert (ours.backbone, ours.extended) == (50, pytest.approx(53.0))


def test_other_items_do_not_compare() -> None:
    section = make_section(
        make_record(tasks=[score("clams-fr", 0.01)]),
        make_record("lora", tasks=[score("clams-fr", 0.01, key="fewer items")]),
    )
    with pytest.raises(UserError, match=r"task clams-fr of neutral and of lora does not compare"):
        task_results(section)


def test_table() -> None:
    table = tasks_table(two_seeds())
    assert table is not None
    columns = {column.name: [cell.text for cell in column.cells] for column in table.columns}
    assert "few-shot" not in columns  # nothing to say
    assert "truncated prompts" not in columns
    assert columns["task"] == ["blimp-en", "clams-fr", "clams-fr"]
    assert columns["difference"] == ["+0.1 ± 0.3", "+3.0 ± 1.4", "−2.0"]
    assert columns["p"] == ["–", "–", "0.200"]  # p-values of two seeds do not average
    assert tasks_table(make_section(make_record())) is None
    truncated = make_record(tasks=[score("clams-fr", 0.03, num_truncated=7)])
    table = tasks_table(make_section(truncated))
    assert table is not None
    assert "truncated prompts" in [column.name for column in table.columns]


def test_every_metric_is_a_row_and_the_first_is_drawn() -> None:
    more = {"metric": "acc", "chance": 0.25, "key": "items by acc"}
    ours = [score("hellaswag_en", 0.02, metric="acc_norm"), score("hellaswag_en", -0.04, **more)]
    record = make_record(tasks=[*ours, score("clams-fr", 0.01)])
    assert [task.metric for task in record.main_scores] == ["acc_norm", "acc"]
    table = tasks_table(make_section(record))
    assert table is not None
    columns = {column.name: [cell.text for cell in column.cells] for column in table.columns}
    assert columns["score"] == ["acc_norm [%]", "acc [%]", "acc [%]"]
    assert columns["chance"] == ["–", "25.0", "–"]
    (plot,) = task_plots(make_section(record))
    assert list(plot.figure.data[0].x) == [pytest.approx(2.0), pytest.approx(1.0)]


def test_figure() -> None:
    (plot,) = task_plots(two_seeds())
    ours, theirs = plot.figure.data
    assert list(ours.x) == [pytest.approx(0.1), pytest.approx(3.0)]
    assert list(theirs.x) == [-2.0]
    assert list(ours.error_x.array) == [pytest.approx(1.0), pytest.approx(2.0)]
    assert ours.y[1] < theirs.y[0]  # of the same task, ours above, and not on top of it
    assert task_plots(make_section(make_record())) == []
