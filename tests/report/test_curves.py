"""Curves through training and by layer, over seeds."""

import pytest

from neutral_residues.report.curves import layer_values, rises, sets_in_curves, training_curves
from synthetic import make_record, make_section


def test_seeds_are_averaged_where_all_were_measured() -> None:
    records = [make_record(seed=seed, bits=2.0 + seed) for seed in (0, 1)]
    short = records[1].model_copy(update={"curve": records[1].curve[:2]})
    section = make_section(records[0], short)
    assert sets_in_curves(section) == {"en": "source", "fr": "target"}
    (curve,) = training_curves(section, "fr")
    assert [list(seed) for seed in curve.seeds] == [[0, 100, 200], [0, 100]]
    assert curve.steps == [0, 100]
    # From 4.0 six tenths of the way to 2.0 and to 3.0.
    assert curve.means == pytest.approx([4.0, (2.8 + 3.4) / 2])


def test_layers() -> None:
    (point,) = make_section(make_record()).points
    values = layer_values(point, "gates_zero")
    assert list(values) == ["en", "wiki", "fr"]
    assert values["en"] == pytest.approx({n: 0.95 - n / 100 for n in range(1, 6)})
    (other,) = make_section(make_record("lora")).points
    assert layer_values(other, "residue_rms") == {}


def test_rises_begin_at_the_backbone_and_end_at_the_result() -> None:
    source, target = rises(make_record(forgetting=5.0, bits=3.0), ("en", "fr"))
    assert source == pytest.approx([0.0, 3.0, 2.5])  # six tenths of 5 %; half of 5 % at the end
    assert target == pytest.approx([0.0, -15.0, -25.0])
    late = make_record(forgetting=5.0, bits=3.0)
    late = late.model_copy(update={"curve": late.curve[1:]})  # nothing to hold the way against
    assert rises(late, ("en", "fr")) == [[0.0, pytest.approx(2.5)], [0.0, pytest.approx(-25.0)]]
