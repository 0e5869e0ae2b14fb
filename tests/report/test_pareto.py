"""Who is better: against what was worked out by hand."""

import pytest

from neutral_residues.report.pareto import (
    FORGETTING,
    compare_with_neutral,
    lost_at,
    lost_in,
    pareto_front,
)
from neutral_residues.report.tables import equal_learning_table, points_table
from neutral_residues.report.verdict import verdict
from neutral_residues.results.record import Record
from synthetic import make_record, make_section, with_kl


def test_pareto_front() -> None:
    places = [(0.0, 3.0), (1.0, 2.0), (1.0, 2.5), (2.0, 2.0), (3.0, 1.5), (4.0, 1.6)]
    records = [make_record(f"m{n}", forgetting=x, bits=y) for n, (x, y) in enumerate(places)]
    front = pareto_front(make_section(*records).points, FORGETTING.of)
    assert [point.label for point in front] == ["m0", "m1", "m4"]


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
    expected = None if forgetting is None else pytest.approx(forgetting)
    assert lost_at(bits, curve, backbone_bits=4.0) == expected


def test_comparison_at_equal_learning() -> None:
    section = make_section(
        make_record(forgetting=0.5, bits=2.5),
        make_record("lora", forgetting=6.0, bits=2.0),  # 2.5 is three quarters of the way from 4
        make_record("adapter", forgetting=8.0, bits=2.5),
        make_record("llama-pro", forgetting=0.1, bits=3.0),  # does not reach 2.5
    )
    result = compare_with_neutral(section)
    assert result is not None
    assert [(other.name, other.lost, other.times) for other in result.others] == [
        ("lora", pytest.approx(4.5), pytest.approx(9)),
        ("adapter", pytest.approx(8.0), pytest.approx(16)),
        ("llama-pro", None, None),
    ]
    assert result.better_on_both_sides == ()
    assert result.num_same_budget == 3


@pytest.mark.parametrize(("own", "other"), [(0.004, 6.0), (-0.5, 6.0), (0.5, -6.0)])
def test_what_is_not_forgotten_has_no_ratio(own: float, other: float) -> None:
    section = make_section(
        make_record(forgetting=own, bits=2.5), make_record("lora", forgetting=other, bits=2.5)
    )
    result = compare_with_neutral(section)
    assert result is not None
    assert [(it.lost, it.times) for it in result.others] == [(pytest.approx(other), None)]


def moved(record: Record, nats: float) -> Record:
    """With that KL from the backbone on all source text."""
    return with_kl(record, nats, *(n for n, it in record.sets.items() if it.role == "source"))


def test_where_source_text_became_easier_kl_tells_what_was_lost() -> None:
    records = [
        moved(make_record(forgetting=0.1, bits=2.5), 0.02),
        moved(make_record("lora", forgetting=-3.0, bits=2.0), 0.4),
    ]
    section = make_section(*records)
    result = compare_with_neutral(section)
    assert result is not None
    # Three quarters of the way from the backbone to LoRA's point.
    assert [(it.lost, it.times) for it in result.others] == [
        (pytest.approx(0.3), pytest.approx(15))
    ]
    assert result.better_on_both_sides == ()
    text = "the next best, lora, has a KL from the backbone of 0.300 (on a straight line"
    assert text in verdict(section)
    table = equal_learning_table(section)
    assert table is not None
    assert [cell.text for cell in table.columns[0].cells] == ["0.0200", "0.3000"]
    (front,) = (it for it in points_table(section).columns if "front" in it.name)
    assert [cell.text for cell in front.cells] == ["yes", "yes"]
    # Without the KL of each point, or where nothing became easier, bits per byte tell.
    harder = [moved(make_record("lora", forgetting=3.0, bits=2.0), 0.4), records[0]]
    for others in (harder, [*records, make_record("adapter", bits=3.0)]):
        assert lost_in(make_section(*others)) is FORGETTING


def test_weight_averages_end_at_the_model_that_they_average() -> None:
    section = make_section(
        make_record(forgetting=0.5, bits=2.5),
        make_record("finetune", forgetting=10.0, bits=2.0, new_weights=0),
        # Another rate's average is not here.
        make_record("finetune", forgetting=1.0, bits=2.4, new_weights=0, rate=5e-4),
        make_record("wise-ft", share=0.5, forgetting=2.0, bits=3.0, new_weights=0),
    )
    result = compare_with_neutral(section)
    assert result is not None
    # Between share 0.5 (3.0 bits, 2 %) and share 1 (2.0 bits, 10 %): 6 % at 2.5 bits.
    assert {o.name: o.lost for o in result.others}["wise-ft"] == pytest.approx(6.0)


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
    section = make_section(make_record(), better)
    result = compare_with_neutral(section)
    assert result is not None
    assert [p.label for p in result.better_on_both_sides] == (["lora"] if found else [])
    assert ("lora is better on both sides" in verdict(section)) == found
