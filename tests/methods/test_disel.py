"""DISeL: its formula, and that PEFT saves, loads and refuses to merge it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from families import DENSE, on_nearest_budget
from neutral_residues import UserError
from neutral_residues.methods.disel import disel_gates
from neutral_residues.methods.low_rank import attach_lora
from tiny_llama import logits


def attach(model, budget):
    return attach_lora(model, budget=budget, only_ffn=False, alpha_over_rank=2.0, gated=True)


@pytest.mark.parametrize("family", [*DENSE, "gpt2"])
def test_it_begins_as_the_backbone(family: str) -> None:
    before, model = on_nearest_budget(family, attach)
    assert torch.equal(logits(model), before)
    gates = disel_gates(model)
    assert gates
    assert all(p.requires_grad for p in gates)
    assert all((p == -3).all() for p in gates if p.dim() == 1)


def test_the_formula(tmp_path: Path) -> None:
    _, model = on_nearest_budget("llama", attach)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    layer = next(m for n, m in model.named_modules() if n.endswith("layers.0.mlp.up_proj"))
    x = torch.randn(2, 3, layer.in_features)
    a, b, gate = (part["default"] for part in (layer.lora_A, layer.lora_B, layer.lora_gate))
    g = 1 / (1 + torch.exp(-(x @ gate.weight.T + gate.bias)))
    expected = x @ layer.base_layer.weight.T + 2 * (g * (x @ a.weight.T)) @ b.weight.T
    torch.testing.assert_close(layer(x), expected)
    after = logits(model)
    model.save_pretrained(tmp_path)
    _, other = on_nearest_budget("llama", attach)
    loaded = PeftModel.from_pretrained(other.unload(), tmp_path)
    assert torch.equal(logits(loaded), after)
    for safe in (True, False):
        with pytest.raises(UserError, match="DISeL cannot be merged"):
            loaded.merge_and_unload(safe_merge=safe)
