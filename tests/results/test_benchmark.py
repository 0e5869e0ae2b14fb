"""The file of a benchmark, written and read."""

import json
from pathlib import Path

import pytest

from neutral_residues.errors import UserError
from neutral_residues.results.benchmark import is_benchmark, read_benchmark, write_benchmark
from neutral_residues.results.store import write_record
from synthetic import make_benchmark, make_record

BENCHMARK = make_benchmark(0.1)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "b.json", BENCHMARK)
    assert read_benchmark(tmp_path / "b.json") == BENCHMARK


def test_a_file_says_whether_it_is_one(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "b.json", BENCHMARK)
    write_record(tmp_path / "record.json", make_record())
    assert is_benchmark(tmp_path / "b.json")
    assert not is_benchmark(tmp_path / "record.json")
    with pytest.raises(UserError, match=r"record\.json is not a benchmark"):
        read_benchmark(tmp_path / "record.json")


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write_benchmark(path, BENCHMARK)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(UserError, match=r"benchmark .*b\.json is not whole JSON"):
        read_benchmark(path)
    value = json.loads(text)
    del value["digest"]
    value["rows"][0]["ratio"] = -1
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"rows\.0\.ratio.*got -1"):
        read_benchmark(path)
