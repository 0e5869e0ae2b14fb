"""Points, curves and sections: every number against one worked out by hand."""

import math

import pytest

from neutral_residues.errors import UserError
from neutral_residues.report.aggregate import Spread, sections
from neutral_residues.report.load import Found, collect
from paths import RECORDS
from synthetic import comparison_records, make_record, make_section, set_result


def test_seeds_become_a_mean_and_a_standard_deviation() -> None:
    seeds = ((0, 1, 2.0), (1, 2, 2.2), (2, 6, 2.4))
    section = make_section(*(make_record(seed=n, forgetting=f, bits=b) for n, f, b in seeds))
    (point,) = section.points
    assert point.bits.n == 3
    assert point.bits.mean == pytest.approx(2.2)
    assert point.bits.deviation == pytest.approx(0.2)
    # (1, 2, 6): mean 3, deviations -2, -1, 3, squares 4 + 1 + 9 = 14, over n - 1 = 2.
    assert point.forgetting.mean == pytest.approx(3)
    assert point.forgetting.deviation == pytest.approx(math.sqrt(7))
    assert point.learning_percent.mean == pytest.approx(-45)  # from 4.0 to 2.2
    assert point.neutral_percent == Spread(pytest.approx(90), pytest.approx(0), 3)
    assert Spread.over([1.5]) == Spread(1.5, None, 1)


def test_forgetting_is_the_mean_over_the_source_sets() -> None:
    record = make_record(forgetting=0)
    sets = record.sets | {"wiki": set_result("wiki", 2.08)}  # from 2.0: +4 %
    (point,) = make_section(record.model_copy(update={"sets": sets})).points
    assert point.forgetting_by_set["en"].mean == pytest.approx(0)
    assert point.forgetting_by_set["wiki"].mean == pytest.approx(4)
    assert point.forgetting.mean == pytest.approx(2)


def test_a_curve_joins_learning_rates_or_shares() -> None:
    by_name = {curve.name: curve for curve in make_section(*comparison_records()).curves}
    assert [p.learning_rate for p in by_name["lora"].points] == [0.0005, 0.001, 0.002]
    assert [p.share for p in by_name["wise-ft"].points] == [0.2, 0.4, 0.6, 0.8]
    assert len(by_name) == 8


def test_validation_chooses_and_the_evaluation_sets_do_not() -> None:
    section = make_section(
        make_record(rate=1e-3, bits=2.0, validation=2.5),
        make_record(rate=2e-3, bits=2.4, validation=2.1),  # worse at the end, better to choose by
    )
    assert [p.is_chosen for p in section.points] == [False, True]
    assert [p.learning_rate for p in section.rows] == [2e-3]


def test_only_points_with_the_most_seeds_can_be_chosen() -> None:
    section = make_section(
        make_record(rate=1e-3, validation=2.5),
        make_record(rate=1e-3, validation=2.5, seed=1),
        make_record(rate=2e-3, validation=2.1),
    )
    assert [p.learning_rate for p in section.rows] == [1e-3]


def test_without_text_for_validation_every_point_stands_for_itself() -> None:
    section = make_section(make_record(rate=1e-3, bits=2.0), make_record(rate=2e-3, bits=2.4))
    assert [p.is_chosen for p in section.points] == [None, None]
    names = [section.row_name(point) for point in section.rows]
    assert names == ["neutral at learning rate 0.001", "neutral at learning rate 0.002"]


def test_learning_share_of_fine_tuning() -> None:
    section = make_section(make_record(bits=2.5), make_record("finetune", bits=2.0, new_weights=0))
    # From 4.0: fine-tuning drops by 2.0, neutral by 1.5.
    assert [p.learning_share for p in section.points] == [pytest.approx(0.75), pytest.approx(1.0)]
    assert make_section(make_record()).points[0].learning_share is None


def test_targets_make_sections() -> None:
    records = [make_record(), make_record(target="it"), make_record("lora")]
    found = sections([Found(str(number), record) for number, record in enumerate(records)])
    names = {section.name: [p.label for p in section.points] for section in found}
    assert names == {"fr": ["neutral", "lora"], "it": ["neutral"]}


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(UserError, match="record 0 and record 1 are the same run"):
        make_section(make_record(), make_record())


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_record_with_one_role_is_refused(role: str) -> None:
    record = make_record()
    sets = {name: result for name, result in record.sets.items() if result.role != role}
    with pytest.raises(UserError, match=f"it lacks a {role} set"):
        make_section(record.model_copy(update={"sets": sets}))


def test_curves_that_would_have_one_name_are_numbered() -> None:
    text = [
        make_record(settings={"data.train": [{"name": "fr", "path": path}]})
        for path in ("a", "b", "c")
    ]
    assert [curve.name for curve in make_section(*text).curves] == [
        "neutral (other train)",
        "neutral (other train #2)",
        "neutral (other train #3)",
    ]


def test_the_records_that_ship_are_reported() -> None:
    found = {s.name: s for s in sections(collect(sorted(RECORDS.glob("*.json"))).found)}
    assert set(found) >= {"fr", "de", "latex"}
    by_label = {point.label: point for point in found["fr"].points}
    assert set(by_label) >= {"neutral", "adapter", "lora", "finetune"}
    assert by_label["finetune"].learning_share == pytest.approx(1)
