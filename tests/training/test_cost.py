"""What training costs, counted by hand."""

from types import SimpleNamespace

import torch
from torch import nn

from neutral_residues.config.run import make_run
from neutral_residues.training.cost import WeightCount, peak_memory_bytes, training_memory_bytes
from tiny_run import run_values


def test_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[0].requires_grad_(False)
    counted = WeightCount(12).with_model(model)
    assert (counted.num_new_weights, counted.num_trained_weights, counted.budget) == (8, 8, 8 / 12)


def test_memory_while_training(tmp_path) -> None:
    config = make_run(run_values(tmp_path))  # 4 rows of 32 tokens
    shape = SimpleNamespace(hidden_size=8, intermediate_size=16, num_hidden_layers=2, vocab_size=10)
    weights = WeightCount(1000, num_new_weights=200, num_trained_weights=200)
    activations, logits = 128 * 2 * (14 * 8 + 4 * 16), 128 * 10 * 4 * 3
    for bf16, size in ((False, 4), (True, 2)):
        expected = 1000 * size + 200 * 16 + activations * size + logits
        assert training_memory_bytes(weights, config, shape, bf16=bf16) == expected


def test_the_peak_of_this_process_grows_with_what_it_holds() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    held = torch.ones(200 * 2**18)  # 200 MiB
    assert peak_memory_bytes(torch.device("cpu")) >= max(before, held.nbytes)
