"""What makes another point, and which records do not compare."""

from typing import Any

import pytest

from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.results.record import Record
from synthetic import make_record, make_section


@pytest.mark.parametrize(
    "settings",
    [
        {"output": "elsewhere"},
        {"data.workers": 9},
        {"data.cache": "elsewhere"},
        {"scaling.trained": "elsewhere"},
        {"evaluation.prompts": ["Il"]},
    ],
)
def test_what_makes_no_other_point(settings: dict[str, Any]) -> None:
    assert len(make_section(make_record(), make_record(seed=1, settings=settings)).points) == 1


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
    section = make_section(make_record(), make_record(seed=1, settings=settings))
    assert len(section.points) == len(section.curves) == 2
    assert len({point.name for point in section.points}) == 2


def test_settings_that_are_newer_than_a_record_make_no_other_point() -> None:
    def of(config: dict[str, Any], seed: int) -> Record:
        kept = make_record(seed=seed)
        return kept.model_copy(update={"config": config | {"seed": seed}})

    corpora = [
        {"name": role, "role": role, "path": f"{role}.jsonl"} for role in ("source", "target")
    ]
    run = make_run({"model": "x", "output": "y", "data": {"train": corpora, "evaluate": corpora}})
    new = run.model_dump(mode="json")
    old = new | {"data": {key: new["data"][key] for key in ("evaluate", "block_tokens")}}
    del old["residues"]["per_target"], old["beside"]
    old["data"]["train"] = corpora
    section = make_section(of(new, 0), of(old, 1))
    assert [point.name for point in section.points] == ["neutral"]
    other = make_section(of(new, 0), of(old | {"budget": 0.1}, 1))
    assert [point.variant for point in other.points] == ["budget 0.2", "budget 0.1"]


def other_tokenizer() -> Record:
    record = make_record("lora")
    other = record.provenance.model_copy(update={"tokenizer_key": "tokenizer-2"})
    return record.model_copy(update={"provenance": other})


def other_text() -> Record:
    record = make_record("lora")
    other = record.sets["en"].model_copy(update={"key": "another text"})
    return record.model_copy(update={"sets": record.sets | {"en": other}})


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (make_record("lora", settings={"model": "models/other"}), "backbone"),
        (other_tokenizer(), "tokenizer"),
        (make_record("lora", settings={"evaluation.stride_tokens": 128}), "windows"),
        (other_text(), "the text of en (key)"),
    ],
)
def test_records_that_were_not_measured_alike_are_refused(other: Record, difference: str) -> None:
    with pytest.raises(UserError) as caught:
        make_section(make_record(), other)
    message = str(caught.value)
    for part in ("record 0 and record 1 do not compare", difference, "report them apart"):
        assert part in message
