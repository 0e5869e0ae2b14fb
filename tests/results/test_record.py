"""What a record may hold, and that every field says what it is."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from neutral_residues.results.benchmark import Benchmark
from neutral_residues.results.record import Cost, Failure, GateText, Record
from neutral_residues.results.store import provenance
from synthetic import make_record, score


def record(**values: Any) -> Record:
    return Record(kind="extend", method="neutral", provenance=provenance(), **values)


def test_created_is_now_unless_given() -> None:
    assert abs(datetime.now(UTC) - record().created) < timedelta(seconds=30)
    with pytest.raises(ValidationError, match="created"):
        record(created=datetime(2025, 7, 1, 12, 0))


def test_a_run_is_called_by_its_label_or_its_method() -> None:
    assert record().label == "neutral"
    assert record(config={"label": "mine"}).label == "mine"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"curve": [{"loss": 1.0}]}, 'needs "step"'),
        ({"sets": {"en": {"role": "other"}}}, "role"),
        ({"surprise": 1}, "Extra inputs"),
        ({"config": {"scaling": 3}}, "scaling is int"),
        ({"config": {"training": {"learning_rate": "high"}}}, r"training\.learning_rate is str"),
        ({"config": {"seed": [1]}}, "seed is list"),
    ],
)
def test_what_a_record_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        record(**values)


def test_a_task_is_scored_once() -> None:
    with pytest.raises(ValidationError, match="task twice: clams-fr"):
        record(tasks=[score("clams-fr", 0.1), score("clams-fr", 0.2)])


@pytest.mark.parametrize("gates", [[[0.0, 1.0]], [[0.0], [1.0]], [[0.0, 1.0], [1.0]]])
def test_there_is_one_gate_for_each_layer_and_token(gates: list[list[float]]) -> None:
    with pytest.raises(ValidationError, match="gates must be 2 rows of 2 numbers"):
        GateText(name="en", kind="source", tokens=["a", "b"], layers=[1, 2], gates=gates)


def test_values_never_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_record().method = "lora"  # type: ignore[misc]


def test_every_field_is_documented() -> None:
    for root in (Record, Benchmark, Failure):
        schema = root.model_json_schema()
        for part in (schema, *schema.get("$defs", {}).values()):
            undocumented = [n for n, f in part["properties"].items() if not f.get("description")]
            assert undocumented == [], part["title"]


def test_validation_bits_are_those_of_the_target_sets_at_the_end() -> None:
    text = {"key": "k", "num_bytes": 1, "num_tokens": 1, "num_documents": 1}
    roles = {"fr-dev": "target", "de-dev": "target", "en-dev": "source"}
    sets = {name: text | {"role": role} for name, role in roles.items()}
    curve = [
        {"step": 9, "bits_per_byte/fr-dev": 1.0, "bits_per_byte/de-dev": 2.0},
        {"step": 0, "bits_per_byte/fr-dev": 0.1, "bits_per_byte/de-dev": 0.1},
        {"step": 9, "bits_per_byte/en-dev": 7.0, "bits_per_byte/fr": 8.0},
        {"step": 9, "loss": 0.2},
    ]
    assert record(validation_sets=sets, curve=curve).validation_bits == 1.5
    assert record(curve=curve).validation_bits is None
    assert record(validation_sets=sets).validation_bits is None


def test_the_share_of_new_weights() -> None:
    assert Cost(new_weights=20, backbone_weights=100).new_share == 0.2
    assert Cost(backbone_weights=100).new_share is None
    assert Cost(new_weights=20).new_share is None
