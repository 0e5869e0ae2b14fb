"""What a record may hold, and that every field says what it is."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from neutral_residues.results.benchmark import Benchmark
from neutral_residues.results.record import Failure, GateText, Record
from neutral_residues.results.store import provenance
from synthetic import make_record
from task_scores import score


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
