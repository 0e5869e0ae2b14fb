"""`neutral extend`: a new run is warned about its texts, and trains the same with or without."""

from pathlib import Path

import pytest
import torch

from neutral_residues.cli.extend import extend_run
from neutral_residues.config.run import make_run
from neutral_residues.results.store import read_record
from tiny_run import SOURCE_WORDS, make_text, run_values


def test_a_new_run_is_warned_of_once_and_not_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    values = run_values(tmp_path, steps=2)
    make_text(tmp_path / "en.jsonl", SOURCE_WORDS, documents=20, seed=1)
    lines = (tmp_path / "en.jsonl").read_text()
    (tmp_path / "en.jsonl").write_text(lines + lines)  # every document twice
    extend_run(make_run(values), advice=True)
    printed = " ".join(capsys.readouterr().err.split())
    assert "warning: corpus en: 50 % of its documents are copies of others" in printed
    extend_run(make_run(values | {"output": str(tmp_path / "other")}), advice=False)
    assert "warning" not in capsys.readouterr().err
    one, other = (read_record(tmp_path / name / "record.json") for name in ("run", "other"))
    assert one.curve == other.curve
    (tmp_path / "run" / "record.json").unlink()  # as if it had been stopped
    extend_run(make_run(values), advice=True)
    assert "warning" not in capsys.readouterr().err
