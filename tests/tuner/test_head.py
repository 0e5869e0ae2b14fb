"""The residue on the output head: the formula by hand, its rank, and where it stands in a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel

from families import FAMILIES, build
from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.tuner.head import GatedHead, HeadResidue, usual_rank
from neutral_residues.tuner.neutral import GateChoice
from neutral_residues.tuner.routing import per_request
from tiny_llama import extended_llama, logits, outputs, perturb, saved, set_gates, tiny_llama

# D = 2, K = 1, V = 3. At h = (2, 1): W_a h = 4; w.h + b = 2 - 1.5 = 0.5; the code is 2.
W_A = [[1.0, 2.0]]
W_B = [[1.0], [0.0], [-3.0]]
NO_LOGITS = torch.empty(0)  # the backbone's, on which the size of a residue does not depend


@torch.no_grad()
def by_hand(h: list[float], *, kind: str = "relu") -> HeadResidue:
    head = GatedHead(2, 3, 1, GateChoice(kind, "open"))
    head.down.weight.copy_(torch.tensor(W_A))
    head.up.weight.copy_(torch.tensor(W_B))
    if head.block_gate is not None:
        head.block_gate.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.block_gate.bias.fill_(-1.5)
    return head(torch.tensor([h]))


def test_the_formula() -> None:
    residue = by_hand([2.0, 1.0])
    assert residue.delta.tolist() == [[2.0, 0.0, -6.0]]
    assert residue.added_to(torch.ones(1, 3)).tolist() == [[3.0, 1.0, -5.0]]
    assert residue.mean_square().item() == pytest.approx((4 + 36) / 3)
    assert residue.relative_size(NO_LOGITS).item() == pytest.approx(((4 + 36) / 3) ** 0.5)
    assert by_hand([2.0, 1.0], kind="none").delta.tolist() == [[4.0, 0.0, -12.0]]


def test_where_the_gate_is_closed_the_logits_stay_bit_by_bit() -> None:
    closed, logits_1V = by_hand([1.0, 1.0]), torch.randn(1, 3)
    assert closed.gate.item() == 0
    assert torch.equal(closed.added_to(logits_1V.clone()), logits_1V)
    assert closed.relative_size(NO_LOGITS).item() == pytest.approx(0, abs=1e-9)


def test_chosen_tokens_get_the_same_as_all() -> None:
    torch.manual_seed(0)
    residue = HeadResidue(torch.randn(6, 2), torch.randn(5, 2), None, None)
    whole = residue.added_to(torch.zeros(2, 3, 5))
    chosen = torch.tensor([1, 4])
    part = residue._replace(code=residue.code[chosen]).added_to(torch.zeros(2, 3, 5), chosen)
    torch.testing.assert_close(part.view(6, 5)[chosen], whole.view(6, 5)[chosen])
    assert part.view(6, 5)[[0, 2, 3, 5]].count_nonzero() == 0
    torch.testing.assert_close(residue.mean_square(), residue.delta.square().mean(-1))
    size = residue.relative_size(NO_LOGITS)
    torch.testing.assert_close(size, (2 * residue.mean_square()).sqrt(), msg="the root of K = 2")
    twice = residue.plus(residue)
    torch.testing.assert_close(twice.mean_square(), 4 * residue.mean_square())


def test_the_gradients_are_autograds() -> None:
    torch.manual_seed(0)
    output = nn.Linear(4, 5, bias=False).double()
    h = torch.randn(2, 3, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(5, 2, dtype=torch.double, requires_grad=True)

    def added(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return HeadResidue(h[..., :2], weight, None, None).added_to(output(h))

    assert torch.autograd.gradcheck(added, (h, weight))


def test_the_local_size_has_a_gradient_at_the_start() -> None:
    head = GatedHead(4, 6, 2)
    head.reset_parameters(num_layers=2)
    head(torch.randn(3, 4)).relative_size(NO_LOGITS).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_the_usual_rank_takes_a_quarter_at_most() -> None:
    assert usual_rank(1e9, 192, 2048) == 64
    assert usual_rank(40_000, 32, 68) == 64
    assert usual_rank(20_000, 32, 68) == 50


@pytest.mark.parametrize(
    ("settings", "rank"),
    [({"budget": 0.2}, None), ({"budget": 0.2, "head_rank": 6}, 6), ({"head_rank": 0}, 0)],
)
def test_head_and_layers_share_one_budget(settings: dict[str, Any], rank: int | None) -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(gate_reads="layer", **settings))
    config = model.peft_config["default"]
    assert config.head_rank == rank if rank is not None else config.head_rank > 1
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert config.num_new_weights == real
    assert real / config.num_backbone_weights == pytest.approx(0.2, rel=0.02)
    has_head = any(layer.is_head for layer in residue_layers(model).values())
    assert has_head == bool(config.head_rank)


def test_tied_weights_stay_tied_and_are_not_saved(tmp_path: Path) -> None:
    config = NeutralResiduesConfig(width=8)
    model = perturb(get_peft_model(tiny_llama(tie_word_embeddings=True), config)).eval()
    embeddings = model.get_input_embeddings().weight
    head = model.get_base_model().lm_head
    assert head.base_layer.weight is embeddings
    loaded = PeftModel.from_pretrained(tiny_llama(tie_word_embeddings=True), saved(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    size = sum(p.numel() for p in model.parameters() if p.requires_grad) * 4
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < size + 8000
    unloaded = model.unload()
    assert unloaded.lm_head.weight is unloaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("family", "settings"),
    [("gemma2", {"final_logit_softcapping": 0.5}), ("cohere", {"logit_scale": 0.25})],
)
def test_the_residue_comes_before_caps_and_scales(family: str, settings: dict[str, Any]) -> None:
    backbone = build(family, FAMILIES[family] | settings)
    before = logits(backbone)
    model = get_peft_model(backbone, NeutralResiduesConfig(width=8, block_gate="none")).eval()
    *_, head = residue_layers(model).values()
    perturb(head)
    added: list[torch.Tensor] = []
    head.register_forward_hook(
        lambda layer, args, _: added.append(layer.residue(args[0], "default").delta)
    )
    found = logits(model)
    if family == "cohere":
        torch.testing.assert_close(found, before + 0.25 * added[0], atol=1e-5, rtol=1e-5)
    else:
        raw = 0.5 * torch.atanh(before.double() / 0.5) + added[0]
        torch.testing.assert_close(
            found.double(), 0.5 * torch.tanh(raw / 0.5), atol=1e-4, rtol=1e-4
        )


def test_a_batch_may_mix_heads() -> None:
    model = extended_llama(adapter_name="french")
    model.add_adapter("german", NeutralResiduesConfig(width=8, gate_reads="layer"))
    perturb(model, seed=4).eval()
    set_gates(model, 0.5)
    alone = {}
    for name in ("french", "german"):
        model.set_adapter(name)
        alone[name] = outputs(model)
    with model.disable_adapter():
        alone["__base__"] = outputs(model)
    names = ["french", "__base__", "german", "german", "french", "__base__", "german", "french"]
    with per_request(model, names):
        mixed = outputs(model)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], atol=1e-5, rtol=1e-5)


def test_a_model_without_a_head_gets_none() -> None:
    model = AutoModel.from_config(tiny_llama().config)
    config = NeutralResiduesConfig(width=8)
    layers = residue_layers(get_peft_model(model, config))
    assert not any(layer.is_head for layer in layers.values())
    assert config.head_rank == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head_rank": -1}, "head_rank; got -1.*0 or more"),
        ({"head_rank": 1.5}, r"head_rank; got 1\.5"),
        ({"head_rank": 500}, "leaves nothing of the budget.*got 500.*up to "),
        ({"head_rank": 4, "modules_to_save": ["lm_head"]}, "modules_to_save trains the output"),
        ({"head_rank": 4, "exclude_modules": ["lm_head"]}, "exclude_modules leaves out"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_peft_model(tiny_llama(), NeutralResiduesConfig(**settings))


def test_a_head_that_is_asked_for_and_missing_is_refused() -> None:
    model: nn.Module = AutoModel.from_config(tiny_llama().config)
    with pytest.raises(UserError, match=r"no output head found in LlamaModel.*set head_rank to 0"):
        get_peft_model(model, NeutralResiduesConfig(width=8, head_rank=4))
