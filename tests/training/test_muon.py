"""Muon trains the matrices inside the layers as torch's own does, and AdamW all other weights."""

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed_worker import InOrder, arguments, extended_llama, mixed_rows, pad_right, trained
from neutral_residues import UserError
from neutral_residues.training.gate_rates import gate_rates
from neutral_residues.training.muon import add_muon, matrices_in_layers, rate_factor

RATE, DECAY = 1e-2, 0.1


def adamw(weights: list[Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)


def model() -> nn.Module:
    return extended_llama(gate_reads="tokens", head_rank=4)


def take_steps(model: nn.Module, *optimizers: torch.optim.Optimizer, num: int = 3) -> None:
    """Steps with the same random gradients for every model."""
    random = torch.Generator().manual_seed(0)
    for _ in range(num):
        for weight in trained(model).values():
            weight.grad = torch.randn(weight.shape, generator=random)
        for optimizer in optimizers:
            optimizer.step()


def test_each_weight_has_its_own_optimizer() -> None:
    both, apart = model(), model()
    matrices = matrices_in_layers(apart)
    ids = {id(matrix) for matrix in matrices}
    names = {name for name, weight in trained(apart).items() if id(weight) in ids}
    assert {name.rsplit(".", 2)[1] for name in names} == {"gate", "up", "down"}
    assert all(".mlp." in name for name in names)
    rest = [weight for weight in trained(apart).values() if id(weight) not in ids]
    muon = torch.optim.Muon(
        matrices, lr=RATE * rate_factor(apart), weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"
    )
    take_steps(apart, adamw(rest), muon)
    take_steps(both, add_muon(both, adamw(list(trained(both).values()))))
    for (name, got), expected in zip(trained(both).items(), trained(apart).values(), strict=True):
        assert torch.equal(got, expected), name


def test_its_rate_shrinks_with_the_root_of_the_hidden_size() -> None:
    narrow, wide = model(), model()
    wide.config.hidden_size = 9 * narrow.config.hidden_size
    assert rate_factor(wide) == pytest.approx(3 * rate_factor(narrow))


def test_schedules_reach_both_and_a_state_continues_both() -> None:
    whole = model()
    optimizer = add_muon(whole, adamw(list(trained(whole).values())))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {RATE / 2, RATE / 2 * rate_factor(whole)}
    take_steps(whole, optimizer)
    resumed = copy.deepcopy(whole)
    fresh = add_muon(resumed, adamw(list(trained(resumed).values())))
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [g["lr"] for g in fresh.param_groups] == [g["lr"] for g in optimizer.param_groups]
    take_steps(whole, optimizer)
    take_steps(resumed, fresh)
    schedule.step()
    for got, expected in zip(trained(resumed).values(), trained(whole).values(), strict=True):
        assert torch.equal(got, expected)
    parts = itertools.chain.from_iterable(part.param_groups for part in fresh.parts)
    assert all(a is b for a, b in zip(fresh.param_groups, parts, strict=True))


def test_what_has_no_matrix_in_a_layer_is_refused() -> None:
    embeddings = nn.Embedding(4, 2)
    only = nn.Module()
    only.embeddings = embeddings
    only.get_input_embeddings = lambda: embeddings  # type: ignore[assignment]
    only.get_output_embeddings = lambda: None  # type: ignore[assignment]
    with pytest.raises(UserError, match="no matrix in a layer to train; set training"):
        add_muon(only, adamw(list(only.parameters())))


def test_a_trainer_of_your_own_has_it_too(tmp_path: Path) -> None:
    args = arguments(
        str(tmp_path), batch=4, accumulation=1, learning_rate=RATE, optim="adamw_torch"
    )

    def trainer(**kwargs: Any) -> InOrder:
        rows = mixed_rows()
        return InOrder(model(), args, train_dataset=rows, data_collator=pad_right, **kwargs)

    with_muon = trainer(muon=True, gate_learning_rate_factor=3.0)
    optimizer = with_muon.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    matrices = {id(p) for p in matrices_in_layers(with_muon.model)}
    gates = {id(p) for gate, _ in gate_rates(with_muon.model) for p in gate.parameters()}
    muon = rate_factor(with_muon.model)
    for key, rate in rates.items():
        factor = muon if key in matrices else 3.0 if key in gates else 1.0
        assert rate == RATE * factor
    assert len(rates) == len(trained(with_muon.model))
    assert type(trainer().create_optimizer()) is not type(optimizer)
    given = (torch.optim.SGD(model().parameters(), lr=RATE), None)
    with pytest.raises(UserError, match=r"muon=True has no effect on optimizers=\.\.\."):
        trainer(muon=True, optimizers=given)
