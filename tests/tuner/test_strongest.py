"""Of several extensions the one whose gate is the strongest stills the others."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache

from neutral_residues import NeutralResiduesConfig, UserError, per_request
from neutral_residues.tuner.embeddings import EmbeddingsLayer, embeddings_layer
from neutral_residues.tuner.gates import gates, observe_gates, only_strongest
from neutral_residues.tuner.layer import no_skipping
from tiny_llama import extended_llama, perturb, token_ids

NAMES = ("french", "german", "ukrainian")


def together(over: int | None = None) -> PeftModel:
    """Three extensions whose gates open on about half of the tokens each."""
    model = extended_llama(adapter_name=NAMES[0], gate_reads="tokens")
    for seed, name in enumerate(NAMES[1:], start=5):
        model.add_adapter(name, NeutralResiduesConfig(width=8, gate_reads="tokens"))
        perturb(model, seed=seed)
    with torch.no_grad():
        for name in NAMES:
            for gate in gates(model, name).values():
                gate.block_gate.weight.mul_(0.1)
                gate.block_gate.bias.zero_()
    model.base_model.set_adapter(list(NAMES))
    only_strongest(model, over)
    return model.eval()


def layer_of(model: nn.Module) -> EmbeddingsLayer:
    layer = embeddings_layer(model)
    assert layer is not None
    return layer


@torch.no_grad()
def gates_EBT(model: nn.Module, ids: Tensor, **arguments: Any) -> Tensor:
    """(E, B, T) of a pass over these tokens."""
    model(input_ids=ids, **arguments)
    return torch.stack([layer_of(model).gates[name].gate[..., 0] for name in NAMES])


@pytest.mark.parametrize("over", [1, 5, 100])
def test_the_rule_by_hand(over: int) -> None:
    ids = token_ids(3, 40)
    trained = gates_EBT(together(), ids)
    assert ((trained > 0).sum(0) > 1).any(), "several are open on a token"
    expected = torch.zeros_like(trained)
    for row in range(3):
        for t in range(40):
            sums = trained[:, row, max(0, t - over + 1) : t + 1].sum(-1)
            sums = [float(it) if trained[i, row, t] > 0 else -1 for i, it in enumerate(sums)]
            winner = sums.index(max(sums))
            expected[winner, row, t] = trained[winner, row, t]
    found = gates_EBT(together(over), ids)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert len(set(found.sum((1, 2)).tolist())) == 3, "each is on somewhere"


@pytest.mark.parametrize("over", [1, 9])
def test_token_by_token_padded_and_packed(over: int) -> None:
    model, ids = together(over), token_ids(2, 50)
    whole = gates_EBT(model, ids)
    for cut in (1, 8, 30):
        cache = DynamicCache()
        first = gates_EBT(model, ids[:, :cut], past_key_values=cache)
        torch.testing.assert_close(first, whole[..., :cut])
        for t in range(cut, 50):
            found = gates_EBT(model, ids[:, t : t + 1], past_key_values=cache)
            torch.testing.assert_close(found[..., 0], whole[..., t], atol=1e-5, rtol=1e-4)
    padded = torch.cat([torch.full((2, 4), 9), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 4, dtype=torch.long), torch.ones_like(ids)], dim=1)
    torch.testing.assert_close(gates_EBT(model, padded, attention_mask=mask)[..., 4:], whole)
    packed = torch.cat([ids[:1], ids[1:]], dim=1)
    positions = torch.arange(50).repeat(2)[None]
    found = gates_EBT(model, packed, position_ids=positions)
    torch.testing.assert_close(found[:, 0], whole.flatten(1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_added_is_that_of_the_strongest_alone() -> None:
    model, ids = together(1000), token_ids(60, 12)
    only = gates_EBT(model, ids) > 0
    mixed = model(input_ids=ids).logits
    with no_skipping(model):
        torch.testing.assert_close(model(input_ids=ids).logits, mixed, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together()(input_ids=ids).logits, mixed)
    for number, name in enumerate(NAMES):
        others = torch.cat([only[:number], only[number + 1 :]]).any(0)
        alone = (~others).cumprod(-1).bool()  # as long as no other one was on
        assert (alone & only[number]).any()
        model.set_adapter(name)
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(mixed[alone], expected[alone], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_by_name_each_is_as_it_is() -> None:
    model, plain, ids = together(8), together(), token_ids(4, 20)
    names = ["german", "__base__", "ukrainian", "french"]
    with per_request(model, names), per_request(plain, names):
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    model.set_adapter("german")
    plain.set_adapter("german")
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_what_gates_say_is_seen_as_it_is() -> None:
    ids, seen = token_ids(2, 20), []
    for over in (None, 8):
        model = together(over)
        with observe_gates(model, "german") as said:
            gates_EBT(model, ids)
        seen.append(*said.values())
    torch.testing.assert_close(seen[0], seen[1])


@pytest.mark.parametrize("settings", [{"gate_reads": "layer"}, {"block_gate": "none"}])
def test_a_gate_that_cannot_tell_is_refused(settings: Any) -> None:
    model = extended_llama(adapter_name="french", gate_reads="tokens")
    model.add_adapter("german", NeutralResiduesConfig(width=8, **settings))
    with pytest.raises(UserError, match="extension german: only gates that read the text"):
        only_strongest(model, 8)
    with pytest.raises(UserError, match="over; got 0; allowed: a number of tokens"):
        only_strongest(model, 0)
