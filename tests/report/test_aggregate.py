"""Points, curves and sections: every number against one worked out by hand."""

import dataclasses
import math
from typing import Any

import pytest

from neutral_residues.errors import UserError
from neutral_residues.report.aggregate import Section, Spread, sections
from neutral_residues.report.formatting import number, spread
from neutral_residues.report.load import Found, collect
from neutral_residues.report.pareto import compare, forgetting_at, pareto_front
from neutral_residues.report.style import looks
from neutral_residues.report.tables import equal_learning_table
from neutral_residues.report.verdict import verdict
from neutral_residues.results.record import Record
from neutral_residues.results.store import read_record
from paths import RECORDS
from synthetic import comparison_records, make_record, set_result


def section(*records: Record) -> Section:
    (only,) = sections([Found(f"record {n}", record) for n, record in enumerate(records)])
    return only


def test_seeds_become_a_mean_and_a_standard_deviation() -> None:
    one = section(
        *(
            make_record(seed=n, forgetting=f, bits=b)
            for n, f, b in ((0, 1, 2.0), (1, 2, 2.2), (2, 6, 2.4))
        )
    )
    (point,) = one.points
    assert point.bits.n == 3
    assert point.bits.mean == pytest.approx(2.2)
    assert point.bits.deviation == pytest.approx(0.2)
    # (1, 2, 6): mean 3, deviations -2, -1, 3, squares 4 + 1 + 9 = 14, over n - 1 = 2.
    assert point.forgetting.mean == pytest.approx(3)
    assert point.forgetting.deviation == pytest.approx(math.sqrt(7))
    assert point.learning_percent.mean == pytest.approx(-45)  # from 4.0 to 2.2
    assert spread(point.bits) == "2.200 ± 0.200"


def test_one_seed_has_no_deviation() -> None:
    assert Spread.of([1.5]) == Spread(1.5, None, 1)
    assert spread(Spread.of([1.5]), 2) == "1.50"
    assert number(-0.0004, 2, sign=True) == "+0.00"
    assert number(-1.5, 2) == "−1.50"


def test_forgetting_is_the_mean_over_the_source_sets() -> None:
    record = make_record(forgetting=0)
    sets = record.sets | {"wiki": set_result("wiki", 2.08)}  # from 2.0: +4 %
    (point,) = section(record.model_copy(update={"sets": sets})).points
    assert point.forgetting_by_set["en"].mean == pytest.approx(0)
    assert point.forgetting_by_set["wiki"].mean == pytest.approx(4)
    assert point.forgetting.mean == pytest.approx(2)


@pytest.mark.parametrize(
    "settings",
    [
        {"output": "elsewhere"},
        {"data.workers": 9},
        {"data.cache": "elsewhere"},
        {"averaging.finetuned": "elsewhere"},
    ],
)
def test_what_makes_no_other_point(settings: dict[str, Any]) -> None:
    assert len(section(make_record(), make_record(seed=1, settings=settings)).points) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 0.1},
        {"data.source_share": 0.5},
        {"training.steps": 7},
        {"label": "neutral.other"},
    ],
)
def test_what_makes_another_point(settings: dict[str, Any]) -> None:
    one = section(make_record(), make_record(seed=1, settings=settings))
    assert len(one.points) == 2
    assert len(one.curves) == 2
    assert len({point.name for point in one.points}) == 2
    assert len({(look.colour, look.marker, look.dash) for look in looks(one.curves).values()}) == 2


def test_a_curve_joins_learning_rates_or_shares() -> None:
    one = section(*comparison_records())
    by_name = {curve.name: curve for curve in one.curves}
    assert [p.learning_rate for p in by_name["lora"].points] == [0.0005, 0.001, 0.002]
    assert [p.share for p in by_name["wise-ft"].points] == [0.2, 0.4, 0.6, 0.8]
    assert len(by_name) == 8


def test_validation_chooses_and_the_evaluation_sets_do_not() -> None:
    one = section(
        make_record(rate=1e-3, bits=2.0, validation=2.5),
        make_record(
            rate=2e-3, bits=2.4, validation=2.1
        ),  # worse where results are measured, better to choose by
    )
    assert [p.is_chosen for p in one.points] == [False, True]
    assert [p.learning_rate for p in one.rows] == [2e-3]


def test_only_points_with_the_most_seeds_can_be_chosen() -> None:
    one = section(
        make_record(rate=1e-3, validation=2.5),
        make_record(rate=1e-3, validation=2.5, seed=1),
        make_record(rate=2e-3, validation=2.1),
    )
    assert [p.learning_rate for p in one.rows] == [1e-3]


def test_without_text_to_validate_on_every_point_stands_for_itself() -> None:
    one = section(make_record(rate=1e-3, bits=2.0), make_record(rate=2e-3, bits=2.4))
    assert [p.is_chosen for p in one.points] == [None, None]
    assert len(one.rows) == 2


def test_learning_share_of_fine_tuning() -> None:
    one = section(make_record(bits=2.5), make_record("finetune", bits=2.0, new_weights=0))
    # From 4.0: fine-tuning drops by 2.0, neutral by 1.5.
    assert [p.learning_share for p in one.points] == [pytest.approx(0.75), pytest.approx(1.0)]
    assert section(make_record()).points[0].learning_share is None


def test_targets_make_sections() -> None:
    found = [Found(t, make_record(target=t)) for t in ("fr", "de", "fr")]
    found[2] = Found("fr 2", make_record("lora"))
    names = {s.name: [p.label for p in s.points] for s in sections(found)}
    assert names == {"fr": ["neutral", "lora"], "de": ["neutral"]}


def test_pareto_front() -> None:
    places = [(0.0, 3.0), (1.0, 2.0), (1.0, 2.5), (2.0, 2.0), (3.0, 1.5), (4.0, 1.6)]
    one = section(*(make_record(f"m{n}", forgetting=x, bits=y) for n, (x, y) in enumerate(places)))
    assert [p.label for p in pareto_front(one.points)] == ["m0", "m1", "m4"]


@pytest.mark.parametrize(
    ("bits", "forgetting"),
    [
        (4.0, 0.0),  # the backbone itself
        (3.5, 1.0),  # half of the way to (2, 3.0)
        (3.0, 2.0),
        (2.5, 4.0),  # half of the way from (2, 3.0) to (6, 2.0)
        (1.9, None),  # never reached
    ],
)
def test_forgetting_at_equal_learning(bits: float, forgetting: float | None) -> None:
    # (9, 3.5) forgets more and learns less than (2, 3.0): left out, or the curve would look worse
    # than it is.
    curve = [(6.0, 2.0), (2.0, 3.0), (9.0, 3.5)]
    assert forgetting_at(bits, curve, backbone_bits=4.0) == (
        None if forgetting is None else pytest.approx(forgetting)
    )


def test_comparison_at_equal_learning() -> None:
    one = section(
        make_record(forgetting=0.5, bits=2.5),
        make_record(
            "lora", forgetting=6.0, bits=2.0
        ),  # at 2.5, three quarters of the way from 4: 4.5 %
        make_record("adapter", forgetting=8.0, bits=2.5),
        make_record("llama-pro", forgetting=0.1, bits=3.0),  # does not reach 2.5
    )
    result = compare(one)
    assert result is not None
    assert [(o.name, o.forgetting) for o in result.others] == [
        ("lora", pytest.approx(4.5)),
        ("adapter", pytest.approx(8.0)),
        ("llama-pro", None),
    ]
    assert result.ratio == pytest.approx(9)
    assert result.better_on_both_sides == ()
    assert result.num_same_budget == 3
    assert "9.0 times as much" in verdict(one)
    table = equal_learning_table(one)
    assert table is not None
    assert [[row.name, *(cell.text for cell in row.cells)] for row in table.rows] == [
        ["neutral", "+0.50", "1"],
        ["lora", "+4.50", "9.0"],
        ["adapter", "+8.00", "16.0"],
        ["llama-pro", "does not learn as much (3.000 bits per byte)", "-"],
    ]


def test_weight_averages_end_at_the_model_that_they_average() -> None:
    one = section(
        make_record(forgetting=0.5, bits=2.5),
        make_record("finetune", forgetting=10.0, bits=2.0, new_weights=0),
        make_record(
            "finetune", forgetting=1.0, bits=2.4, new_weights=0, rate=5e-4
        ),  # another rate's average is not here
        make_record("wise-ft", share=0.5, forgetting=2.0, bits=3.0, new_weights=0),
    )
    result = compare(one)
    assert result is not None
    # Between share 0.5 (3.0 bits, 2 %) and share 1 (2.0 bits, 10 %): 6 % at 2.5 bits.
    assert {o.name: o.forgetting for o in result.others}["wise-ft"] == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("new_weights", "budget", "found"),
    [(200, 0.2, True), (203, 0.9, True), (0, 0.9, True), (300, 0.201, True), (300, 0.9, False)],
)
def test_better_on_both_sides_at_the_same_budget(
    new_weights: int, budget: float, found: bool
) -> None:
    better = make_record(
        "lora", forgetting=0.1, bits=1.9, new_weights=new_weights, settings={"budget": budget}
    )
    one = section(make_record(), better)
    result = compare(one)
    assert result is not None
    assert [p.label for p in result.better_on_both_sides] == (["lora"] if found else [])
    assert ("lora is better on both sides" in verdict(one)) == found


def test_verdicts() -> None:
    alone = verdict(section(make_record(forgetting=0.5, bits=2.0)))
    assert "neutral lowers bits per byte from 4.000 to 2.000 (−50.0 %; 1 seed)" in alone
    assert "change by +0.50 % on average" in alone
    assert alone.endswith("Nothing else was measured here, so there is nothing to compare it with.")

    nothing = section(make_record(forgetting=-0.1), make_record("lora", forgetting=4, bits=2.0))
    assert "It forgets nothing; at equal learning the next best, lora, forgets +4.00 %" in verdict(
        nothing
    )

    short = section(make_record(), make_record("lora", forgetting=4, bits=3.0))
    assert "No other method learns as much: lora comes nearest with 3.000" in verdict(short)

    beaten = section(make_record(forgetting=5), make_record("lora", forgetting=1, bits=2.0))
    assert "At equal learning lora forgets less: +1.00 %" in verdict(beaten)

    without = verdict(
        section(make_record("lora", forgetting=4), make_record("adapter", forgetting=3, bits=2.5))
    )
    assert "lora learns most" in without
    assert "adapter forgets least" in without
    assert "No run of neutral residues" in without

    unlearnt = verdict(section(make_record(bits=4.5)))
    assert "does not lower bits per byte from 4.000 to 4.500 (+12.5 %" in unlearnt

    seeds = verdict(section(make_record(forgetting=1), make_record(forgetting=3, seed=1)))
    assert "+2.00 ± 1.41 %" in seeds
    assert "2 seeds" in seeds


@pytest.mark.parametrize("text", ["neutral", "lora"])
def test_every_verdict_is_two_sentences(text: str) -> None:
    for records in ([make_record(text)], comparison_records()):
        sentences = verdict(section(*records)).replace("neutral.elu", "neutral elu").split(". ")
        assert len(sentences) == 2


def changed(**changes: Any) -> Record:
    return make_record("lora", **changes)


def with_set(**changes: Any) -> Record:
    record = make_record("lora")
    sets = {name: s.model_copy(update=changes) for name, s in record.sets.items()}
    return record.model_copy(update={"sets": sets})


def other_tokenizer() -> Record:
    record = make_record("lora")
    return record.model_copy(
        update={"provenance": record.provenance.model_copy(update={"tokenizer_key": "tokenizer-2"})}
    )


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (changed(settings={"model": "models/other"}), "backbone"),
        (other_tokenizer(), "tokenizer"),
        (changed(settings={"evaluation.stride_tokens": 128}), "windows"),
        (with_set(key="another text"), "the text of en (key)"),
        (with_set(num_bytes=999), "the text of en (bytes, tokens)"),
    ],
)
def test_records_that_were_not_measured_alike_are_refused(other: Record, difference: str) -> None:
    with pytest.raises(UserError) as caught:
        section(make_record(), other)
    message = str(caught.value)
    assert "\n" not in message
    for part in ("record 0 and record 1 do not compare", difference, "report them apart"):
        assert part in message


def test_the_same_run_twice_is_refused() -> None:
    with pytest.raises(UserError, match="record 0 and record 1 are the same run"):
        section(make_record(), make_record())


@pytest.mark.parametrize(
    ("role", "lacks"), [("source", "a source set"), ("target", "a target set")]
)
def test_a_record_with_one_side_is_refused(role: str, lacks: str) -> None:
    record = make_record()
    half = {name: s for name, s in record.sets.items() if s.role != role}
    with pytest.raises(UserError, match=lacks):
        section(record.model_copy(update={"sets": half}))


def test_curves_that_would_have_one_name_are_numbered() -> None:
    text = [
        make_record(seed=0, settings={"data.train": [{"name": "fr", "path": path}]})
        for path in ("a", "b", "c")
    ]
    one = section(*text)
    assert [curve.name for curve in one.curves] == [
        "neutral (other train)",
        "neutral (other train #2)",
        "neutral (other train #3)",
    ]
    assert len(looks(one.curves)) == 3


def test_many_curves_stay_apart() -> None:
    one = section(*(make_record(f"method-{n}") for n in range(25)))
    drawn = looks(one.curves)
    assert len({(look.colour, look.marker, look.dash) for look in drawn.values()}) == 25
    assert len({dataclasses.astuple(look)[2] for look in list(drawn.values())[:7]}) == 7


def test_records_of_version_1_are_reported() -> None:
    files = sorted(RECORDS.glob("*.json"))
    assert {read_record(file).version for file in files} >= {1}
    found = {s.name: s for s in sections(collect(files).found)}
    assert set(found) >= {"fr", "de", "latex"}
    labels = {point.label for point in found["fr"].points}
    assert labels >= {"neutral", "adapter", "lora", "finetune"}
    finetuned = next(p for p in found["fr"].points if p.label == "finetune")
    assert finetuned.learning_share == pytest.approx(1)
