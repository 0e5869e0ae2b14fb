"""Tasks in the report: seeds averaged, intervals not narrowed by them, items that differ
refused."""

from pathlib import Path
from typing import Any

import pytest

from neutral_residues.errors import UserError
from neutral_residues.report.aggregate import Section, sections
from neutral_residues.report.build import write_report
from neutral_residues.report.load import Found
from neutral_residues.report.plots import all_plots
from neutral_residues.report.tasks import task_results, task_sentences, tasks_table
from neutral_residues.results.record import Record, TaskScore
from neutral_residues.results.store import write_record
from synthetic import make_record


def score(name: str, change: float, half: float = 0.01, **changes: Any) -> TaskScore:
    values: dict[str, Any] = {
        "name": name, "metric": "acc", "unit": "share", "direction": "higher", "num_items": 400, "backbone": 0.5,
        "extended": 0.5 + change, "difference": change, "low": change - half, "high": change + half, "p_value": 0.2,
        "interval": "paired t", "num_fewshot": 0, "num_truncated": 0, "key": f"items of {name}",
        "language": name[-2:], "role": "target" if name.endswith("fr") else "source",
    }  # fmt: skip
    return TaskScore(**values | changes)


def section(*records: Record) -> Section:
    (found,) = sections([Found(f"{number}.json", record) for number, record in enumerate(records)])
    return found


def two_seeds() -> Section:
    return section(
        make_record(seed=0, tasks=[score("blimp-en", -0.001), score("clams-fr", 0.02)]),
        make_record(seed=1, tasks=[score("blimp-en", 0.003), score("clams-fr", 0.04, 0.03)]),
        make_record("lora", tasks=[score("clams-fr", -0.02)]),
        make_record("adapter"),
    )


def test_seeds_are_averaged_and_the_interval_stays_as_wide() -> None:
    results = {(r.point.label, r.score.name): r for r in task_results(two_seeds())}
    assert list(results) == [("neutral", "blimp-en"), ("neutral", "clams-fr"), ("lora", "clams-fr")]
    ours = results["neutral", "clams-fr"]
    assert (ours.difference.mean, ours.difference.n) == (pytest.approx(3.0), 2)
    assert (ours.low, ours.high) == (pytest.approx(1.0), pytest.approx(5.0))
    assert (ours.backbone, ours.extended) == (50, pytest.approx(53.0))


def test_in_words() -> None:
    assert task_sentences(two_seeds()) == [
        (
            "neutral – English: blimp-en no change beyond noise (+0.1 ± 1.0); French: clams-fr"
            " better (+3.0 ± 2.0)."
        ),
        "lora – French: clams-fr worse (−2.0 ± 1.0).",
    ]
    many = [score(f"{name}_fr", 0.01, 0.02) for name in ("arc", "hellaswag", "m_mmlu", "belebele")]
    other = score("wikitext", -0.5, 1.0, unit="score", language=None, direction="lower")
    assert task_sentences(section(make_record(tasks=[*many, other]))) == [
        # Four half-widths of 2 add up to 4 as squares; divided by 4 that is 1, and 0 lies on its
        # edge.
        "neutral – French: mean of 4 tasks no change beyond noise (+1.0 ± 1.0); "
        "wikitext no change beyond noise (−0.5 ± 1.0)."
    ]


def test_other_items_do_not_compare() -> None:
    with pytest.raises(UserError, match=r"task clams-fr of neutral and of lora does not compare"):
        task_results(
            section(
                make_record(tasks=[score("clams-fr", 0.01)]),
                make_record("lora", tasks=[score("clams-fr", 0.01, key="fewer items")]),
            )
        )


def test_table_and_figure() -> None:
    table = tasks_table(two_seeds())
    assert table is not None
    names = [column.name for column in table.columns]
    assert "shots" not in names  # nothing to say
    assert "prompts cut" not in names
    assert [row.cells[names.index("task") - 1].text for row in table.rows] == [
        "blimp-en",
        "clams-fr",
        "clams-fr",
    ]
    (plot,) = [plot for plot in all_plots(two_seeds()) if plot.key == "tasks"]
    assert [list(trace.x) for trace in plot.figure.data] == [
        [pytest.approx(0.1), pytest.approx(3.0)],
        [-2.0],
    ]
    assert list(plot.figure.data[0].error_x.array) == [pytest.approx(1.0), pytest.approx(2.0)]
    places = [list(trace.y) for trace in plot.figure.data]
    assert places[0][1] < places[1][0]  # of the same task, ours above, and not on top of it
    assert tasks_table(section(make_record())) is None


def test_on_the_page_and_in_the_summary(tmp_path: Path) -> None:
    for label in ("neutral", "lora"):
        record = make_record(label, tasks=[score("clams-fr", 0.03, num_truncated=7)])
        write_record(tmp_path / label / "record.json", record)
    write_report([tmp_path / "neutral", tmp_path / "lora"], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    summary = (tmp_path / "report" / "summary.md").read_text(encoding="utf-8")
    for text in (page, summary):
        assert "French: clams-fr better (+3.0 ± 1.0)" in text
        assert "prompts cut" in text
    assert "Change on tasks, with 95 % intervals" in page
