"""One extended block: several adapters, precision, gradients and hooks."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.tuner.layer import NeutralResiduesLayer, observe_residues
from neutral_residues.tuner.neutral import Residue
from tiny_llama import extended_llama, logits, perturb, saved, tiny_llama, token_ids


def layer_deltas(model: PeftModel) -> list[Tensor]:
    """What every residue added, in the order of computation."""

    class Deltas:
        def __init__(self) -> None:
            self.deltas: list[Tensor] = []

        def on_residue(self, layer: NeutralResiduesLayer, residue: Residue, *_: object) -> None:
            self.deltas.append(residue.delta)

    deltas = Deltas()
    with observe_residues(residue_layers(model), deltas):
        logits(model)
    return deltas.deltas


def two_extensions() -> PeftModel:
    """Of different widths and gates, in the last layer only, so that both always read the same
    input."""
    model = extended_llama(adapter_name="french", layers_to_transform=[1])
    settings = {"block_gate": "sigmoid", "gate_reads": "layer", "layers_to_transform": [1]}
    model.add_adapter("danish", NeutralResiduesConfig(width=4, **settings))
    return perturb(model).eval()


def test_the_active_extension_is_the_one_that_was_set() -> None:
    model = two_extensions()
    french = logits(model)
    model.set_adapter("danish")
    danish = logits(model)
    assert not torch.equal(french, danish)
    model.set_adapter("french")
    assert torch.equal(logits(model), french)


def test_active_together_they_are_summed() -> None:
    model = two_extensions()
    french, _ = layer_deltas(model)
    model.set_adapter("danish")
    danish, _ = layer_deltas(model)
    assert french.abs().max() > 0.01
    assert danish.abs().max() > 0.01
    model.base_model.set_adapter(["french", "danish"])
    both = layer_deltas(model)
    assert torch.equal(both[0], french)
    assert torch.equal(both[1], danish)

    layer = next(iter(residue_layers(model).values()))
    x = torch.randn(1, 3, 32)
    expected = (
        layer.base_layer(x) + layer.residue(x, "french").delta + layer.residue(x, "danish").delta
    )
    assert torch.equal(layer(x), expected)


def test_an_inactive_extension_does_not_train() -> None:
    model = two_extensions()
    assert not any("danish" in name for name, p in model.named_parameters() if p.requires_grad)
    model.set_adapter("danish")
    assert all("danish" in name for name, p in model.named_parameters() if p.requires_grad)


def test_a_deleted_extension_leaves_nothing_behind() -> None:
    model = two_extensions()
    french = logits(model)
    model.delete_adapter("danish")
    assert torch.equal(logits(model), french)
    assert not [name for name, _ in model.named_modules() if "danish" in name]
    layer = next(iter(residue_layers(model).values()))
    assert all("danish" not in getattr(layer, name) for name in layer.other_param_names)


def test_two_hooks_at_once_are_refused() -> None:
    layers = residue_layers(extended_llama())

    class Nobody:
        def on_residue(self, layer: NeutralResiduesLayer, residue: Residue, *_: object) -> None: ...

    with observe_residues(layers, Nobody()):
        with pytest.raises(UserError, match="observed already"), observe_residues(layers, Nobody()):
            pass
        assert all(layer.residue_hook is not None for layer in layers.values())
    assert all(layer.residue_hook is None for layer in layers.values())


def gradients(model: PeftModel) -> dict[str, Tensor]:
    model.train()
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def test_gradient_checkpointing_does_not_change_the_gradients() -> None:
    expected = gradients(extended_llama())
    model = extended_llama()
    # The name that Transformers gave it in the course of version 5, or the one before.
    enable = (
        getattr(model, "activation_checkpointing_enable", None)
        or model.gradient_checkpointing_enable
    )
    enable({"use_reentrant": False})
    found = gradients(model)
    assert model.base_model.model.model.layers[0].gradient_checkpointing
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_on_a_bfloat16_backbone_it_computes_in_float32(tmp_path: Path) -> None:
    expected = logits(tiny_llama().bfloat16())
    model = get_peft_model(tiny_llama().bfloat16(), NeutralResiduesConfig(width=8)).eval()
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(logits(model), expected)
    perturb(model)
    assert logits(model).dtype == torch.bfloat16
    assert not torch.allclose(logits(model), expected, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    loaded = PeftModel.from_pretrained(tiny_llama().bfloat16(), saved(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))


def test_autocast_decides_the_precision_of_the_residues() -> None:
    model = extended_llama()
    with torch.autocast("cpu", torch.bfloat16):
        assert {delta.dtype for delta in layer_deltas(model)} == {torch.bfloat16}
    assert {delta.dtype for delta in layer_deltas(model)} == {torch.float32}
