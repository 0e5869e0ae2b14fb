"""A run with `path: self` from end to end: what is said before and after, and measured again."""

import shutil
from pathlib import Path

import pytest

from command_line import Neutral, assert_one_line
from neutral_residues.results.store import read_record
from tiny_run import run_values, write_run


def test_a_run_on_the_backbones_own_text(
    tmp_path: Path, neutral: Neutral, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    values = run_values(tmp_path, steps=3, kl_weight=1.0)
    values["data"]["train"][1] = {"name": "own", "role": "source", "path": "self"}
    values["data"]["self_replay"] = {"document_tokens": 40, "batch_rows": 8, "tokens": 1500}
    run = write_run(tmp_path, values)
    code, printed = neutral("describe", run)
    assert code == 0, printed
    assert "about 1,500 tokens, to be written by the backbone at temperature 1, top_p 1" in printed
    assert not list((tmp_path / "cache").glob("self-*"))
    code, printed = neutral("extend", run)
    assert code == 0, printed
    assert "writes 1,500 tokens of source text" in printed
    record = read_record(tmp_path / "run" / "record.json")
    assert record.self_text is not None
    assert record.config["data"]["train"][1]["path"] == "self"
    assert record.sets["own"].role == "source"  # held out
    card = (tmp_path / "run" / "extension" / "README.md").read_text()
    assert record.self_text.sentence in card
    code, printed = neutral("describe", run)
    assert record.self_text.sentence in printed
    assert "held out: own (source)" in printed
    code, printed = neutral("evaluate", tmp_path / "run", "--output", tmp_path / "again.json")
    assert code == 0, printed
    again = read_record(tmp_path / "again.json").sets["own"]
    assert again.extended_bits_per_byte == record.sets["own"].extended_bits_per_byte
    shutil.rmtree(tmp_path / "cache")
    assert_one_line(neutral("evaluate", tmp_path / "run"), "wrote is not in the cache")
