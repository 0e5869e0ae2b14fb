"""A run on chats: answers are learnt and measured, and nothing else."""

from pathlib import Path

import pytest
import torch

from neutral_residues.config.run import make_run
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.run import extend
from neutral_residues.training.setup import Setup
from one_prompt import continue_one
from tiny_run import chat_values


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_a_run_on_chats_learns_answers_and_measures_them(tmp_path: Path) -> None:
    values = chat_values(tmp_path, steps=30, learning_rate=0.01)
    values["residues"] = {"local_loss_weight": 0.005}
    setup = Setup.of(make_run(values))
    record = extend(setup)
    learnt = record.sets["fr"]
    assert learnt.extended_bits_per_byte < 0.97 * learnt.backbone_bits_per_byte
    held_out = {stream.name: stream for stream in setup.data.evaluate}
    for name, found in record.sets.items():
        # Of every answer: its bytes, one token each, "<|im_end|>" and the line end.
        assert found.num_tokens == found.num_bytes + 2 * found.num_documents
        assert found.num_tokens == held_out[name].num_predicted < held_out[name].num_tokens
    assert record.spliced is None
    logged = [point for point in record.curve if "loss" in point]
    assert logged[-1]["loss_nats/fr"] < logged[0]["loss_nats/fr"]
    saved = load_saved(tmp_path / "run")
    assert saved.tokenizer.chat_template
    sample = continue_one(saved.model, saved.tokenizer, "le chat", max_new_tokens=4, chat=True)
    assert sample.prompt == "le chat"
