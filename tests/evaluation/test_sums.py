"""What adds up over an evaluation set, by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from neutral_residues.evaluation.sums import ResidueStats, Sums, TokenSums
from neutral_residues.tuner.layer import residue_layers
from neutral_residues.tuner.neutral import Residue
from tiny_llama import extended_llama

EVEN = torch.tensor([0.5, 0.5]).log()
SKEWED = torch.tensor([0.25, 0.75]).log()


FIRST = np.arange(3)


def sums(*, kl: bool = False, by_token: TokenSums | None = None) -> Sums:
    return Sums(by_token, 0.0 if kl else None, gates_zero=[0], squares=[0.0])


def test_nats_of_both_models_and_their_divergence() -> None:
    found = sums(kl=True)
    targets = torch.tensor([0, 1, 1])
    found.add_nats(SKEWED.expand(3, 2) + 7.0, EVEN.expand(3, 2), targets, FIRST)  # no shift
    assert found.extended_nats == pytest.approx(math.log(4) + 2 * math.log(4 / 3), rel=1e-6)
    assert found.backbone_nats == pytest.approx(3 * math.log(2), rel=1e-6)
    divergence = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.kl_nats == pytest.approx(3 * divergence, rel=1e-6)


def test_a_backbone_that_is_not_run_adds_nothing() -> None:
    found = sums()
    found.add_nats(EVEN.expand(3, 2), None, torch.tensor([0, 1, 1]), FIRST)
    assert found.extended_nats == pytest.approx(3 * math.log(2), rel=1e-6)
    assert (found.backbone_nats, found.kl_nats) == (0.0, None)


def test_nats_fall_to_tokens_and_documents() -> None:
    by_token = TokenSums.empty(3, np.array([2, 5]))
    tokens = np.array([2, 0, 2])
    by_token.add(FIRST + 1, tokens, np.array([1.0, 2.0, 4.0]), np.array([8.0, 16.0, 32.0]))
    assert by_token.counts_V.tolist() == [1, 0, 2]
    assert by_token.extended_V.tolist() == [2.0, 0.0, 5.0]
    assert by_token.backbone_V.tolist() == [16.0, 0.0, 40.0]
    assert by_token.extended_D.tolist() == [1.0, 6.0]  # token 1 ends the first document
    assert by_token.backbone_D.tolist() == [8.0, 48.0]


OUTPUT = torch.zeros(1, 3, 2)  # of the block; the sums do not need it


def residue(gate: list[float] | None, delta: list[list[float]]) -> Residue:
    gate_BT1: Tensor | None = None if gate is None else torch.tensor([gate])[..., None]
    return Residue(torch.tensor([delta]), gate_BT1, None)


def test_gates_and_residues_at_the_scored_positions() -> None:
    layers = residue_layers(extended_llama(layers_to_transform=[1], head_rank=0))
    (layer,) = layers.values()
    stats, found = ResidueStats(layers), sums()
    stats.start(1, 3)
    stats.on_residue(
        layer, residue([0.0, 0.0, 0.5], [[9.0, 9.0], [0.0, 0.0], [3.0, 1.0]]), OUTPUT, "default"
    )
    found.add_residues(stats, torch.tensor([[False, True, True]]))
    assert (found.num_neutral_tokens, found.gates_zero, found.squares) == (1, [1], [5.0])
    (one,) = found.layer_results(stats, num_tokens=2)
    assert (one.layer, one.gates_zero) == (1, 0.5)
    assert one.residue_rms == pytest.approx(math.sqrt(10 / (2 * 2)))


def test_without_a_gate_no_token_is_neutral() -> None:
    layers = residue_layers(extended_llama(layers_to_transform=[1], head_rank=0))
    (layer,) = layers.values()
    stats, found = ResidueStats(layers), sums()
    stats.start(1, 2)
    stats.on_residue(layer, residue(None, [[1.0, 1.0], [0.0, 0.0]]), OUTPUT, "default")
    found.add_residues(stats, torch.tensor([[True, True]]))
    assert found.num_neutral_tokens == 0
    assert found.layer_results(stats, num_tokens=2)[0].gates_zero is None
