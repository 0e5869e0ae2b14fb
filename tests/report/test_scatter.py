"""Tasks at equal bits per byte, and forgetting against the KL: one mark for each point."""

import pytest

from neutral_residues.report.scatter import grammar, kept, razor
from neutral_residues.report.tables import summary_table
from neutral_residues.report.verdict import verdict
from synthetic import make_record, make_section, score, with_kl


def test_one_mark_for_each_point_that_has_the_task() -> None:
    section = make_section(
        make_record(bits=2.2, seed=0, tasks=[score("clams-fr", 0.06), score("blimp-en", 0.0)]),
        make_record(bits=2.4, seed=1, tasks=[score("clams-fr", 0.10), score("blimp-en", 0.0)]),
        make_record("lora", bits=2.1, tasks=[score("clams-fr", 0.04)]),
        make_record("adapter", bits=2.0),
    )
    (plot,) = grammar(section)  # source tasks have no plot
    assert plot.title == "clams-fr at equal bits per byte"
    marks = {trace.name: (trace.x[0], trace.y[0]) for trace in plot.figure.data}
    assert marks["neutral"] == pytest.approx((2.3, 58.0))
    assert marks["lora"] == pytest.approx((2.1, 54.0))
    assert marks["backbone"] == pytest.approx((4.0, 50.0))
    assert len(marks) == 3
    (neutral,) = (trace for trace in plot.figure.data if trace.name == "neutral")
    assert neutral.error_y.array[0] == pytest.approx(2 * 2**0.5)
    assert [row.name for row in plot.table.rows] == [p.full_name for p in section.points[:2]]


def test_one_run_or_another_kind_of_score_compares_with_nothing() -> None:
    assert grammar(make_section(make_record(tasks=[score("clams-fr", 0.1)]))) == []
    wrong = {"unit": "score", "direction": "lower"}
    records = [make_record(n, tasks=[score("ppl-fr", 0.1, **wrong)]) for n in ("neutral", "lora")]
    assert grammar(make_section(*records)) == []


def test_forgetting_against_kl_where_every_seed_has_it() -> None:
    section = make_section(
        with_kl(make_record(forgetting=0.5, seed=0), 2.0),
        with_kl(make_record(forgetting=0.7, seed=1), 3.0),
        with_kl(make_record("lora", forgetting=9.0, seed=0), 2.5),
        make_record("lora", forgetting=9.0, seed=1),
    )
    (plot,) = razor(section)
    marks = {trace.name: (trace.x[0], trace.y[0]) for trace in plot.figure.data}
    assert marks == {"neutral": pytest.approx((2.5, 0.6)), "backbone": (0, 0)}
    assert razor(make_section(make_record())) == []


def test_learning_against_the_kl_on_source_text() -> None:
    neutral = make_record(bits=2.1, forgetting=-0.1)
    sources = [name for name in neutral.sets if neutral.sets[name].role == "source"]
    lora = with_kl(make_record("lora", bits=2.0, forgetting=-3.0), 0.3, *sources)
    section = make_section(with_kl(neutral, 0.004, *sources), lora, make_record("adapter"))
    (plot,) = kept(section)
    marks = {trace.name: (trace.x[0], trace.y[0]) for trace in plot.figure.data}
    assert marks == {
        "neutral": pytest.approx((0.004, 2.1)),
        "lora": pytest.approx((0.3, 2.0)),
        "backbone": pytest.approx((0, 4.0)),
    }
    # Bits per byte alone would say that LoRA is better on both sides.
    assert "nats per token: neutral 0.004, lora 0.300." in verdict(section)
    assert "bits per byte hide what was lost" in verdict(section)
    (column,) = (it for it in summary_table(section).columns if it.name.startswith("KL"))
    assert [cell.text for cell in column.cells] == ["0.0040", "0.3000", "–"]
    assert kept(make_section(with_kl(neutral, 0.004, *sources[:-1]))) == []
