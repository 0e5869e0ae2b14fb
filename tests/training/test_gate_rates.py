"""Gates move equally fast, however small the numbers are that they read."""

from pathlib import Path

import pytest
import torch
from torch import nn

from distributed_worker import InOrder, arguments, extended_llama, mixed_rows, pad_right
from neutral_residues.training.gate_rates import gate_rates


def with_norms_of(model: nn.Module, scale: float) -> nn.Module:
    """What the gates of the last layer read, `scale` times as large."""
    layer = next(module for name, module in model.named_modules() if name.endswith("layers.1"))
    with torch.no_grad():
        layer.post_attention_layernorm.weight.mul_(scale)
    return model


def test_small_inputs_get_a_larger_rate_and_large_ones_no_smaller() -> None:
    rates = [
        rate for _, rate in gate_rates(with_norms_of(extended_llama(gate_reads="layer"), 0.25))
    ]
    assert rates == pytest.approx([1.0, 4.0, 1.0], rel=0.02)
    assert [
        rate for _, rate in gate_rates(with_norms_of(extended_llama(gate_reads="layer"), 5.0))
    ] == [1.0] * 3


def test_a_gate_that_reads_the_text_has_the_rate_itself() -> None:
    model = extended_llama(gate_reads="tokens")
    ((_, rate),) = gate_rates(model)
    assert rate == 1.0


def test_measuring_leaves_the_model_and_the_random_state_as_they_were() -> None:
    model = extended_llama().train()
    state = torch.get_rng_state()
    gates = gate_rates(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any(gate._forward_pre_hooks for gate, _ in gates)


def test_learning_rates_of_a_training(tmp_path: Path) -> None:
    model = with_norms_of(extended_llama(gate_reads="layer"), 0.25)
    args = arguments(str(tmp_path), batch=4, accumulation=1, learning_rate=0.01)
    trainer = InOrder(
        model,
        args,
        train_dataset=mixed_rows(),
        data_collator=pad_right,
        gate_learning_rate_factor=2.0,
    )
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for (gate, _), factor in zip(gate_rates(model), (2.0, 8.0, 2.0), strict=True):
        for parameter in gate.parameters():
            assert rates.pop(id(parameter)) == pytest.approx(0.01 * factor, rel=0.05)
    assert set(rates.values()) == {0.01}
