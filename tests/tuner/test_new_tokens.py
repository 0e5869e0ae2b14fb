"""New tokens: where they are impossible, what stays the backbone's, saving, and several by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from families import FAMILIES, build
from neutral_residues import NeutralResiduesConfig, UserError
from neutral_residues.tuner.embeddings import EmbeddingsLayer, embeddings_layer
from neutral_residues.tuner.neutral import Gate
from neutral_residues.tuner.new_tokens import (
    SMALL_GATE,
    NewTokens,
    log_gate,
    num_token_weights,
    usual_token_rank,
)
from neutral_residues.tuner.routing import BACKBONE, per_request
from tiny_llama import NUM_NEW_TOKENS as N
from tiny_llama import V, llama_with_tokens, perturb, saved, tiny_llama, token_ids

SOME_FAMILIES = ("gemma2", "gemma3_text", "gpt2", "llama", "qwen3_moe", "cohere")
"""Capped and scaled logits, scaled embeddings, tied and not, old and new."""


def layer_of(model: Any) -> EmbeddingsLayer:
    layer = embeddings_layer(model)
    assert layer is not None
    return layer


def mixed_ids() -> Tensor:
    """Old and new tokens."""
    return token_ids(2, 24).where(torch.arange(24) % 5 != 3, V + torch.arange(24) % N)


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None, **arguments: Any) -> Tensor:
    ids = mixed_ids() if ids is None else ids
    return model(input_ids=ids, **arguments).logits


def gates(model: Any) -> Tensor:
    """(B, T) of the last pass."""
    return layer_of(model).gates["default"].gate[..., 0]


def test_a_new_token_is_impossible_exactly_where_the_gate_is_shut() -> None:
    model = llama_with_tokens()
    found = logits(model)
    shut = gates(model) == 0
    assert found.shape == (2, 24, V + N)
    assert shut.any()
    assert not shut.all()
    assert (found[..., V:].isinf().all(-1) == shut).all()
    assert (found.softmax(-1)[..., V:].sum(-1)[shut] == 0).all()


def test_shut_on_all_of_a_text_is_the_backbone_to_the_bit() -> None:
    model = llama_with_tokens()
    with torch.no_grad():
        layer_of(model).readers()["default"].block_gate.bias.fill_(-100)
    found, backbone = logits(model, token_ids()), logits(tiny_llama(), token_ids())
    assert torch.equal(found[..., :V], backbone)
    assert torch.equal(found.log_softmax(-1)[..., :V], backbone.log_softmax(-1))


def test_logits_and_embeddings_by_hand() -> None:
    model = llama_with_tokens()
    seen: dict[str, Tensor] = {}
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, args: seen.update(h=args[0]))
    found = logits(model)
    hook.remove()
    tokens = layer_of(model).tokens("default")
    assert tokens is not None
    rows_ND = tokens.codes.weight @ tokens.out_of.weight
    expected = seen["h"] @ rows_ND.t() + gates(model)[..., None].log()
    torch.testing.assert_close(found[..., V:], expected.detach())
    embedded = layer_of(model)(torch.tensor([[3, V + 5]]))[0]
    torch.testing.assert_close(embedded[1], tokens.into.weight @ tokens.codes.weight[5])
    assert torch.equal(embedded[0], layer_of(model).base_layer(torch.tensor(3)))


def test_switched_off_it_is_the_backbone_which_has_no_such_ids() -> None:
    model = llama_with_tokens()
    with model.disable_adapter():
        assert torch.equal(logits(model, token_ids()), logits(tiny_llama(), token_ids()))
        with pytest.raises(UserError, match="no active extension has this token; got 7"):
            logits(model)
    with pytest.raises(UserError, match="got 76; allowed: 0 to 75"):
        logits(model, torch.tensor([[V + N]]))


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    model = llama_with_tokens()
    loaded = PeftModel.from_pretrained(tiny_llama(), str(saved(model, tmp_path))).eval()
    assert torch.equal(logits(loaded), logits(model))


def test_one_extension_per_request_has_its_own_tokens() -> None:
    model = llama_with_tokens()
    other = {"width": 8, "gate_reads": "tokens", "new_tokens": 5, "new_tokens_rank": 4}
    model.add_adapter("other", NeutralResiduesConfig(**other))
    perturb(model, 3)
    model.eval()
    ids = token_ids(3, 8)
    ids[0, 2], ids[2, 2] = V + 11, V + 4
    names = ["default", BACKBONE, "other"]
    with per_request(model, names):
        together = logits(model, ids)
    for row, (name, own) in enumerate(zip(names, (N, 0, 5), strict=True)):
        with per_request(model, [name]):
            alone = logits(model, ids[row : row + 1])[0]
        assert alone.shape[-1] == V + own
        torch.testing.assert_close(together[row, :, : V + own], alone, atol=1e-6, rtol=1e-5)
        assert together[row, :, V + own :].eq(-torch.inf).all()


def test_two_at_once_would_share_ids() -> None:
    model = llama_with_tokens()
    other = {"width": 8, "gate_reads": "tokens", "new_tokens": 5, "new_tokens_rank": 4}
    model.add_adapter("other", NeutralResiduesConfig(**other))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UserError, match="default and other both have new tokens"):
        logits(model)


def test_generation_goes_token_by_token_as_in_one_pass() -> None:
    model = llama_with_tokens()
    start = mixed_ids()[:1, :6]
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None}
    cached = model.generate(input_ids=start, use_cache=True, **settings)
    assert (cached >= V).any()
    assert torch.equal(cached, model.generate(input_ids=start, use_cache=False, **settings))
    assert model.generate(input_ids=start, num_beams=3, **settings).shape == (1, 18)


def test_the_loss_of_transformers_counts_all_logits() -> None:
    model = llama_with_tokens(block_gate="none").train()
    ids = mixed_ids()
    outputs = model(input_ids=ids, labels=ids)
    flat = outputs.logits[:, :-1].reshape(-1, V + N)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(flat, ids[:, 1:].flatten()))
    outputs.loss.backward()
    trained = [p for n, p in model.named_parameters() if ".tokens." in n]
    assert len(trained) == 3
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_in_training_a_shut_gate_learns_that_a_new_token_follows() -> None:
    model = llama_with_tokens().train()
    with torch.no_grad():
        layer_of(model).readers()["default"].block_gate.bias.fill_(-1)
    ids = mixed_ids()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    bias = layer_of(model).readers()["default"].block_gate.bias
    assert loss.isfinite()
    assert bias.grad is not None
    assert bias.grad.item() < 0  # a step opens it


def test_log_gate_is_continued_without_a_jump() -> None:
    for logit in (SMALL_GATE - 1e-4, SMALL_GATE + 1e-4):
        gate = Gate.of("relu", torch.tensor([logit], requires_grad=True))
        value = log_gate(gate, trains=True)
        assert value.item() == pytest.approx(torch.tensor(SMALL_GATE).log().item(), abs=2e-3)
        (slope,) = torch.autograd.grad(value.sum(), gate.logits)
        assert slope.item() == pytest.approx(1 / SMALL_GATE, rel=2e-3)
    assert log_gate(Gate.of("relu", torch.tensor([-1.0])), trains=False).item() == -torch.inf


def test_a_small_rank_keeps_the_largest_directions() -> None:
    rows = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    tokens = NewTokens(30, 4, embedding_width=16, hidden_width=16)
    tokens.start_from(rows, rows)
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    nearest = left[:, :4] * values[:4] @ right[:4]
    torch.testing.assert_close(tokens.embed(torch.arange(30)), nearest, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_in_other_families(family: str) -> None:
    model = get_peft_model(
        build(family, FAMILIES[family]), NeutralResiduesConfig(budget=0.9, new_tokens=N)
    )
    ids = mixed_ids()
    assert logits(model, ids).shape == (2, 24, V + N)
    perturb(model)
    model.eval()
    with torch.no_grad():
        layer_of(model).readers()["default"].block_gate.bias.fill_(-1000)
    assert logits(model, ids)[..., V:].eq(-torch.inf).all()
    assert model(input_ids=ids).logits[..., V:].eq(-torch.inf).all()  # with gradients, too
    backbone = build(family, FAMILIES[family]).eval()
    assert torch.equal(logits(model, token_ids())[..., :V], logits(backbone, token_ids()))


def test_the_weights_are_counted_and_within_the_budget() -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(budget=0.9, new_tokens=N))
    config = model.peft_config["default"]
    new = sum(p.numel() for n, p in model.named_parameters() if ".neutral_residues." in n)
    assert config.num_new_weights == new
    assert new == pytest.approx(0.9 * config.num_backbone_weights, rel=0.02)
    widths = {"embedding_width": 32, "hidden_width": 32}
    assert config.new_tokens_rank == usual_token_rank(0.9 * 19616, N, **widths)
    assert num_token_weights(N, 3, **widths) == 3 * (N + 64)


ONE_GATE = (
    "new_tokens need one relu or sigmoid gate for the whole extension, or no gate; got .*;"
    " set gate_reads to tokens and block_gate to relu"
)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"new_tokens": -1}, "new_tokens; got -1; allowed: a whole number, 0 or more"),
        ({"new_tokens_rank": 4}, "new_tokens_rank has no effect without new_tokens"),
        ({"new_tokens": 4, "gate_reads": "layer"}, ONE_GATE),
        ({"new_tokens": 4, "block_gate": "elu"}, ONE_GATE),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NeutralResiduesConfig(**settings)


def test_too_many_for_the_budget() -> None:
    with pytest.raises(UserError, match=r"new tokens leave nothing of the budget.*up to \d+"):
        get_peft_model(tiny_llama(), NeutralResiduesConfig(budget=0.2, new_tokens=100_000))
