"""What is found behind a path."""

import gzip
import json
from pathlib import Path

import pytest

from neutral_residues.errors import UserError
from neutral_residues.report import load
from neutral_residues.report.load import collect
from neutral_residues.results.record import Failure
from neutral_residues.results.store import write_record
from paths import COMPARISONS
from synthetic import HOSTILE, make_comparison, make_record


def test_a_comparison_gives_its_cells(tmp_path: Path) -> None:
    found = collect([make_comparison(tmp_path / "comparison")])
    assert len(found.found) == 7 * 4 + 4 + 1
    assert found.found[0].origin.startswith("comparison/cells/fr/adapter/")
    states = {run.origin.rpartition("/")[2]: run.reason for run in found.unfinished}
    assert states == {"failed": f"the loss is not finite {HOSTILE}", "waiting": None}


def test_a_record_reached_twice_counts_once(tmp_path: Path) -> None:
    write_record(tmp_path / "run" / "record.json", make_record())
    (found,) = collect([tmp_path / "run", tmp_path / "run" / "record.json"]).found
    assert found.origin == "run/record.json"


def test_a_packed_comparison(tmp_path: Path) -> None:
    (packed,) = COMPARISONS.glob("main.jsonl.gz")
    found = collect([packed]).found
    assert len(found) == 69
    assert found[0].origin.startswith("main.jsonl.gz/cells/french/adapter/")
    failure = Failure(label="lora", reason="out of memory").model_dump(mode="json")
    entry = {"path": "cells/fr/lora/failure.json", "content": failure}
    file = tmp_path / "failed.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(entry).encode()))
    (run,) = collect([file, packed]).unfinished
    assert (run.label, run.reason) == ("lora", "out of memory")
    file.write_bytes(packed.read_bytes()[:1000])
    with pytest.raises(UserError, match="is broken or cut short"):
        collect([file])


@pytest.mark.parametrize(
    ("content", "message", "repeat"),
    [
        (b"{}", "line 1 is not of a packed comparison; got {}", 1),
        (b'{"path": 1, "content": {}}', "is not of a packed comparison; got path, content", 1),
        (b"[]", "line 1: not an object", 1),
        (b"[" * 100_000, "line 1: not JSON", 1),
        (b'{"path": "a/record.json", "content": 3}', "is not a record of", 1),
        (b'{"path": "\\ud800", "content": 3}', "half a character", 1),
        (bytes(2**25), "a document of over", 1),
        (b" " * 999 + b"\n", "is too large for", 40_000),
    ],
)
def test_packs_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str, repeat: int
) -> None:
    monkeypatch.setattr(load, "MOST_BYTES", 2**25)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content, 1) * repeat)
    with pytest.raises(UserError, match=message):
        collect([tmp_path / "a.jsonl.gz"])


def broken(folder: Path, what: str) -> Path:
    """A path that cannot be reported."""
    folder.mkdir()
    file = folder / "record.json"
    if what == "missing":
        return file
    if what == "unfinished":
        (folder / "run.yaml").write_text("model: x\n")
    elif what == "empty comparison":
        (folder / "compare.yaml").write_text("{}\n")
    elif what != "empty folder":
        write_record(file, make_record())
        text, value = file.read_text(), json.loads(file.read_text())
        other = {"truncated": text[:300], "newer": json.dumps(value | {"version": 99})}
        file.write_text(other.get(what, json.dumps({"hello": 1})))
    return folder


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "is not whole JSON"),
        ("newer", "99"),
        ("foreign", "is not a record"),
        ("missing", "no such file or folder"),
        ("empty folder", "neither a run nor a comparison"),
        ("unfinished", "a run that is not finished"),
        ("empty comparison", "no record in"),
    ],
)
def test_bad_input_is_one_line(what: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        collect([broken(tmp_path / "run", what)])
