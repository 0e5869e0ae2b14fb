"""Skipped tokens change nothing: where a gate is 0 its adapter is not computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from neutral_residues import residue_layers
from neutral_residues.tuner.layer import NeutralResiduesLayer, no_skipping, observe_residues
from neutral_residues.tuner.skipping import DENSE_SHARE, GATHER_FROM, active_token_indices
from tiny_llama import extended_llama, logits, outputs, set_gates, tiny_llama, token_ids


@contextmanager
def computed_tokens(model: nn.Module) -> Iterator[list[int]]:
    """For each call of an adapter, how many tokens it was computed for."""
    counts: list[int] = []
    handles = [
        layer.adapter(name).register_forward_hook(
            lambda module, args, residue: counts.append(args[0].shape[:-1].numel())
        )
        for layer in residue_layers(model).values()
        for name in layer.known_adapters()
    ]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("open_share", [0.0, 0.3, 1.0])
def test_skipping_changes_nothing(open_share: float) -> None:
    model = extended_llama()
    set_gates(model, open_share)
    with no_skipping(model), computed_tokens(model) as in_full:
        expected = outputs(model)
    with computed_tokens(model) as computed:
        found = outputs(model)
    assert in_full == [256, 256, 256]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    if open_share == 0.3:
        assert all(256 * 0.2 < n < 256 * 0.4 for n in computed)
    else:  # nothing is gathered: the same numbers to the last bit
        assert computed == [256, 256, 256] * int(open_share)
        assert torch.equal(found, expected)


def test_closed_gates_give_the_backbone_bit_by_bit() -> None:
    model = extended_llama()
    set_gates(model, 0.0)
    assert torch.equal(outputs(model), outputs(tiny_llama()))


@pytest.mark.parametrize("rows", [1, 3])
def test_generations_are_the_same_token_by_token(rows: int) -> None:
    model = extended_llama()
    set_gates(model, 0.3)
    settings = {
        "max_new_tokens": 24,
        "min_new_tokens": 24,
        "do_sample": False,
        "attention_mask": torch.ones(rows, 32, dtype=torch.long),
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with no_skipping(model), computed_tokens(model) as in_full:
        expected = model.generate(input_ids=token_ids(8, 32)[:rows], **settings)
    with computed_tokens(model) as computed:
        found = model.generate(input_ids=token_ids(8, 32)[:rows], **settings)
    assert sum(computed) < 0.8 * sum(in_full)
    assert torch.equal(found.sequences, expected.sequences)
    for step, (a, b) in enumerate(zip(found.logits, expected.logits, strict=True)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6, msg=f"token {step}")


@pytest.mark.parametrize(
    "settings", [{"block_gate": "sigmoid"}, {"block_gate": "elu"}, {"block_gate": "none"}]
)
def test_only_a_gate_that_can_be_zero_is_skipped(settings: dict[str, Any]) -> None:
    model = extended_llama(**settings)
    with computed_tokens(model) as computed:
        outputs(model)
    assert computed == [256, 256, 256]


def test_no_token_is_skipped_in_training_for_a_hook_or_compiled() -> None:
    model = extended_llama()
    set_gates(model, 0.0)
    with computed_tokens(model) as computed:
        model(input_ids=token_ids())
    assert computed == [24, 24, 24]

    class Hook:
        def on_residue(self, layer: NeutralResiduesLayer, residue: Any, *_: Any) -> None:
            assert residue.delta.shape[:2] == (2, 12)

    with computed_tokens(model) as computed, observe_residues(residue_layers(model), Hook()):
        logits(model)
    assert computed == [24, 24, 24]
    torch._dynamo.reset()  # what another test compiled does not count
    with computed_tokens(model) as computed:
        logits(torch.compile(model, fullgraph=True, backend="eager"))
    assert computed == [24, 24, 24]


def test_a_gate_that_is_not_a_number_shows_in_the_output() -> None:
    model = extended_llama()
    layer = next(iter(residue_layers(model).values()))
    with torch.no_grad():
        layer.adapter("default").block_gate.bias.fill_(torch.nan)
    assert outputs(model).isnan().all()


def test_where_most_gates_are_open_nothing_is_gathered() -> None:
    logits_N1 = -torch.ones(2 * GATHER_FROM, 1)
    most, half = int(2 * GATHER_FROM * DENSE_SHARE) + 1, GATHER_FROM
    logits_N1[:half] = 1
    assert active_token_indices(logits_N1, None).tolist() == list(range(half))
    assert active_token_indices(logits_N1, torch.arange(2 * GATHER_FROM) + 7).tolist() == [
        7 + n for n in range(half)
    ]
    logits_N1[:most] = 1
    assert active_token_indices(logits_N1, None) is None
