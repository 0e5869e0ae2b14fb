"""Composed codes: nothing at the start, both ends while they train, plain rows in the end."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from neutral_residues import NeutralResiduesConfig, UserError
from neutral_residues.experimental.composed_tokens import compose, settle
from neutral_residues.tuner.embeddings import embeddings_layer
from tiny_llama import extended_llama, saved, tiny_llama

V = 64
PIECES = [[3, 4], [4, 3], [5], [3, 4], *([6, 7, 8] for _ in range(8))]
IDS = torch.tensor([[3, V, V + 1, 4, V + 2, V + 3, 9]])


def with_tokens() -> PeftModel:
    settings = {"gate_reads": "tokens", "new_tokens": len(PIECES), "new_tokens_rank": 4}
    return extended_llama(**settings)


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def network(model: torch.nn.Module) -> torch.nn.Module:
    layer = embeddings_layer(model)
    assert layer is not None
    tokens = layer.tokens("default")
    assert tokens is not None
    return tokens.codes


def test_it_changes_nothing_until_it_is_trained() -> None:
    plain, composed = with_tokens(), with_tokens()
    num_weights = compose(composed, PIECES)
    assert torch.equal(logits(plain), logits(composed))
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (plain, composed)]
    assert num_weights == trained[1] - trained[0] == 32 * 4 + 16 * 4 + 4 * 4


def test_it_trains_sees_the_order_of_pieces_and_settles_into_rows(tmp_path: Path) -> None:
    model = with_tokens()
    own = network(model).weight.detach().clone()
    names = [name for name, _ in model.named_parameters()]
    compose(model, PIECES)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step only V has a gradient
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    codes = network(model).parametrizations.weight
    assert all(p.grad.abs().sum() > 0 for p in codes[0].parameters())
    added = (network(model).weight - codes.original).detach()
    torch.testing.assert_close(added[0], added[3])
    assert not torch.allclose(added[0], added[1])
    found = logits(model).detach()
    settle(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert not torch.equal(network(model).weight, own)
    assert torch.equal(logits(model), found)
    loaded = PeftModel.from_pretrained(tiny_llama(), str(saved(model, tmp_path))).eval()
    assert torch.equal(logits(loaded), found)


def test_what_has_no_new_tokens() -> None:
    with pytest.raises(UserError, match="pieces; got 1; allowed: those of 12 new tokens"):
        compose(with_tokens(), [[3]])
    plain = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8))
    with pytest.raises(UserError, match="extension 'default' has no new tokens"):
        compose(plain, PIECES)
