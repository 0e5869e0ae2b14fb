"""A run on pairs beside text: completions are learnt and measured, with a share of their own."""

from pathlib import Path

import pytest
import torch

from neutral_residues.config.run import make_run
from neutral_residues.run import extend
from neutral_residues.training.setup import Setup
from tiny_run import SOURCE_WORDS, TARGET_WORDS, run_values


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_run_on_pairs_learns_completions_and_measures_them(tmp_path: Path) -> None:
    values = run_values(tmp_path, steps=30, learning_rate=0.01)
    words = list(zip(SOURCE_WORDS, TARGET_WORDS, strict=False))
    lines = [f"{a} {b}\t{x} {y}\n" for a, x in words for b, y in words]
    (tmp_path / "pairs.tsv").write_text("".join(lines), encoding="utf-8")
    pairs = {"name": "en-fr", "role": "target", "path": str(tmp_path / "pairs.tsv")}
    values["data"]["train"][0]["share"] = [1.0, 0.0]
    values["data"]["train"].append(pairs | {"prompt": 1, "field": 2, "share": [0.0, 1.0]})
    values["residues"] = {"local_loss_weight": 0.005}
    setup = Setup.of(make_run(values))
    record = extend(setup)
    learnt = record.sets["en-fr"]
    assert learnt.extended_bits_per_byte < 0.97 * learnt.backbone_bits_per_byte
    # Of every completion: its bytes, one token each, and the end of the text.
    assert learnt.num_tokens == learnt.num_bytes + learnt.num_documents
    logged = [set(point) for point in record.curve if "loss" in point]
    assert "loss_nats/en-fr" not in logged[0]  # of its first step
    assert "loss_nats/en-fr" in logged[-1]
