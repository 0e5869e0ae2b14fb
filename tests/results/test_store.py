"""The record of a run: what is written is read back, and nothing else is."""

import json
import math
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from neutral_residues.errors import UserError
from neutral_residues.results.record import Cost, Sample
from neutral_residues.results.set_result import SetResult
from neutral_residues.results.store import PACKAGES, Record, provenance, read_record, write_record


def set_result(**changes: Any) -> SetResult:
    values: dict[str, Any] = {
        "role": "source",
        "key": "k",
        "num_bytes": 100,
        "num_tokens": 30,
        "num_documents": 2,
        "backbone_nats": 120.0,
        "extended_nats": 126.0,
    }
    return SetResult(**values | changes)


def record(**changes: Any) -> Record:
    values: dict[str, Any] = {
        "kind": "extend",
        "method": "neutral",
        "sets": {"en": set_result()},
        "curve": [{"step": 0, "loss_nats": 4.5}, {"step": 10, "loss_nats": 3.0}],
        "samples": [Sample(prompt="Hé", backbone=" llo", extended=" là")],
        "cost": Cost(
            tokens=1000, seconds=2.5, tokens_per_second=400.0, new_weights=20, backbone_weights=100
        ),
        "provenance": provenance(seed=3, device="cpu", tokenizer_key="abc"),
        "config": {"method": "neutral", "sets": ["en"], "alpha": 1.0},
    }
    return Record(**values | changes)


def written(path: Path, **changes: Any) -> dict[str, Any]:
    """Edited on purpose: without its digest."""
    write_record(path, record())
    value: dict[str, Any] = json.loads(path.read_text()) | changes
    del value["digest"]
    path.write_text(json.dumps(value))
    return value


def test_round_trip(tmp_path: Path) -> None:
    before = record()
    write_record(tmp_path / "deep" / "record.json", before)
    after = read_record(tmp_path / "deep" / "record.json")
    assert after == before
    assert isinstance(after.curve[1]["step"], int)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["record.json"]


def test_file_says_what_it_is_and_when_in_utc(tmp_path: Path) -> None:
    noon_in_paris = datetime(2025, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=2)))
    write_record(tmp_path / "r.json", record(created=noon_in_paris))
    value = json.loads((tmp_path / "r.json").read_text())
    assert (value["format"], value["version"]) == ("neutral-residues/record", 1)
    assert value["created"] == "2025-07-01T10:00:00Z"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_record_is_one_line(tmp_path: Path, share: float) -> None:
    path = tmp_path / "r.json"
    write_record(path, record())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"r\.json is not whole JSON") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"pickle", b'{"format": NaN}', b"[" * 100_000]
)
def test_no_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(UserError, match="not whole JSON"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '{"format": "somebody/else"}'])
def test_foreign_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(UserError, match="is not a record of neutral-residues"):
        read_record(tmp_path / "r.json")


def test_another_version(tmp_path: Path) -> None:
    written(tmp_path / "r.json", version=2, a_field_of_the_future=1)
    with pytest.raises(UserError, match=r"record .*r\.json: version; got 2; allowed: 1"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"surprise": 1}, "unknown key surprise"),
        (
            {"sets": {"en": dict(set_result()) | {"rule": 1}}},
            r"unknown key sets\.en\.rule; did you mean 'role'",
        ),
        ({"kind": "other"}, "kind: "),
        ({"sets": {"en": {"role": "source"}}}, r"r\.json: missing key sets\.en\.key"),
        ({"cost": {"tokens": -1}}, r"cost\.tokens: "),
    ],
)
def test_wrong_fields_are_one_line_that_names_them(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    written(tmp_path / "r.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        read_record(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_record(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder"):
        read_record(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused_everywhere(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        set_result(extended_nats=bad)
    with pytest.raises(ValidationError, match="finite"):
        record(curve=[{"step": 1, "loss": bad}])
    with pytest.raises(UserError, match="cannot be written"):
        write_record(tmp_path / "r.json", record(config={"train": {"alpha": bad}}))
    unchecked = set_result().model_copy(update={"kl_nats": bad})
    with pytest.raises(UserError, match="cannot be written"):
        write_record(tmp_path / "r.json", record().model_copy(update={"sets": {"en": unchecked}}))
    assert list(tmp_path.iterdir()) == []


def test_older_record_survives_a_refused_one(tmp_path: Path) -> None:
    write_record(tmp_path / "r.json", record())
    with pytest.raises(UserError):
        write_record(tmp_path / "r.json", record(config={"alpha": math.nan}))
    assert read_record(tmp_path / "r.json").method == "neutral"


def test_provenance_names_versions() -> None:
    found = provenance(seed=1)
    assert found.packages["torch"] == metadata.version("torch")
    assert set(found.packages) == set(PACKAGES)
    assert found.python == ".".join(str(part) for part in sys.version_info[:3])
    assert found.git_commit is None or len(found.git_commit.removesuffix("-dirty")) == 40


def test_no_torch_here() -> None:
    code = (
        "import sys, neutral_residues.results.store, neutral_residues.results.model_card; assert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
