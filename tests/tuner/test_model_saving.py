"""Saving and loading, through PEFT and through Transformers: the same to the bit, or an error."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from tiny_llama import extended_llama, logits, perturb, saved, tiny_llama, token_ids, two_adapters

WEIGHTS = "adapter_model.safetensors"


def rewrite(folder: Path, change: Any) -> None:
    """Let `change` edit the tensors of a saved extension."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def drop_one(tensors: dict[str, Tensor]) -> None:
    del tensors["base_model.model.model.layers.1.mlp.neutral_residues.up.weight"]


def add_one(tensors: dict[str, Tensor]) -> None:
    tensors["base_model.model.model.layers.2.mlp.neutral_residues.up.weight"] = torch.zeros(8, 32)


def cut_one(tensors: dict[str, Tensor]) -> None:
    key = "base_model.model.model.layers.1.mlp.neutral_residues.up.weight"
    tensors[key] = tensors[key][:-1].clone()


def test_saved_and_loaded_it_is_the_same_to_the_bit(tmp_path: Path) -> None:
    model = extended_llama()
    folder = saved(model, tmp_path)
    assert not torch.equal(logits(model), logits(tiny_llama()))
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), folder)), logits(model))


def test_only_the_residues_are_saved(tmp_path: Path) -> None:
    model = extended_llama()
    tensors = load_file(saved(model, tmp_path) / WEIGHTS)
    assert sum(t.numel() for t in tensors.values()) == model.peft_config["default"].num_new_weights
    assert "base_model.model.model.layers.0.mlp.neutral_residues.gate.weight" in tensors


def test_both_auto_classes_find_backbone_and_extension(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "backbone")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    model = perturb(get_peft_model(backbone, NeutralResiduesConfig(width=8)).eval())
    folder = saved(model, tmp_path / "extension")
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(folder)), logits(model))
    native = AutoModelForCausalLM.from_pretrained(folder)
    assert not isinstance(native, PeftModel)
    assert torch.equal(logits(native), logits(model))


def test_the_adapter_name_is_not_part_of_the_checkpoint(tmp_path: Path) -> None:
    model = extended_llama(adapter_name="french")
    folder = saved(model, tmp_path) / "french"
    for name in ("french", "fr", "default"):
        assert torch.equal(
            logits(PeftModel.from_pretrained(tiny_llama(), folder, adapter_name=name)),
            logits(model),
        )


def test_several_extensions_are_saved_apart(tmp_path: Path) -> None:
    model = two_adapters()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "german", adapter_name="german")
    loaded.load_adapter(tmp_path / "french", adapter_name="french")
    for name in ("german", "french"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))


def test_loading_without_memory_for_two_copies(tmp_path: Path) -> None:
    model = extended_llama()
    loaded = PeftModel.from_pretrained(tiny_llama(), saved(model, tmp_path), low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded), logits(model))


def test_a_loaded_extension_can_be_trained_on(tmp_path: Path) -> None:
    loaded = PeftModel.from_pretrained(
        tiny_llama(), saved(extended_llama(), tmp_path), is_trainable=True
    )
    loaded(input_ids=token_ids(), labels=token_ids()).loss.backward()
    gradients = [p.grad for p in loaded.parameters() if p.requires_grad]
    assert gradients
    assert all(gradient.any() for gradient in gradients)


def test_another_module_can_be_trained_and_saved_with_it(tmp_path: Path) -> None:
    model = extended_llama(modules_to_save=["lm_head"])
    before = logits(model)
    head = model.base_model.model.lm_head.modules_to_save["default"]
    assert head.weight.requires_grad
    head.weight.data.mul_(2)
    assert torch.equal(logits(model), 2 * before)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny_llama()))
    folder = saved(model, tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), folder)), logits(model))
    native = tiny_llama()
    native.load_adapter(str(folder))
    assert torch.equal(logits(native), logits(model))


def test_many_layers_of_which_some_are_left_out(tmp_path: Path) -> None:
    # From 20 targets on, PEFT shortens the list of names; it must still mean the same layers when
    # loaded.
    chosen = [0, *range(2, 24)]
    model = perturb(
        get_peft_model(
            tiny_llama(num_hidden_layers=24),
            NeutralResiduesConfig(width=4, layers_to_transform=chosen),
        ).eval()
    )
    loaded = PeftModel.from_pretrained(tiny_llama(num_hidden_layers=24), saved(model, tmp_path))
    assert len(residue_layers(loaded)) == 24, "23 layers and the head"
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, r"1 missing tensors, first .*layers\.1\.mlp\.neutral_residues\.default\.up"),
        (add_one, r"1 extra tensors, first .*layers\.2\.mlp\.neutral_residues\.up"),
        (cut_one, r"shape of .*layers\.1.*default.up.*; got \(7, 32\); allowed: \(8, 32\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(
    change: Any, message: str, tmp_path: Path
) -> None:
    folder = saved(extended_llama(), tmp_path)
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        PeftModel.from_pretrained(tiny_llama(), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64}, "hidden_size; got 64; allowed: 32"),
        ({"num_hidden_layers": 3}, "num_hidden_layers; got 3; allowed: 2"),
        ({"vocab_size": 65}, "vocab_size; got 65; allowed: 64"),
    ],
)
@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
def test_another_backbone_is_refused(
    changes: dict[str, int], message: str, native: bool, tmp_path: Path
) -> None:
    folder = saved(extended_llama(), tmp_path)
    other = tiny_llama(**changes)
    with pytest.raises(UserError, match=f"made for another backbone: {message}"):
        other.load_adapter(str(folder)) if native else PeftModel.from_pretrained(other, folder)


def test_transformers_own_verbs(tmp_path: Path) -> None:
    expected = logits(tiny_llama())
    model = tiny_llama()
    model.add_adapter(NeutralResiduesConfig(width=8), adapter_name="fr")
    assert torch.equal(logits(model), expected)
    perturb(model)
    extended = logits(model)
    assert not torch.allclose(extended, expected, atol=1e-2)
    model.disable_adapters()
    assert torch.equal(logits(model), expected)
    model.enable_adapters()
    assert torch.equal(logits(model), extended)

    model.save_pretrained(tmp_path)
    loaded = tiny_llama()
    loaded.load_adapter(str(tmp_path), adapter_name="french")
    assert torch.equal(logits(loaded), extended)
    loaded.delete_adapter("french")
    assert torch.equal(logits(loaded), expected)


def test_what_peft_saved_transformers_loads(tmp_path: Path) -> None:
    model = extended_llama()
    native = tiny_llama()
    native.load_adapter(str(saved(model, tmp_path)))
    assert torch.equal(logits(native), logits(model))


def test_a_tensor_that_transformers_did_not_find_is_an_error_at_the_first_forward(
    tmp_path: Path,
) -> None:
    folder = saved(extended_llama(), tmp_path)
    rewrite(folder, drop_one)
    native = tiny_llama()
    native.load_adapter(str(folder))  # reports the missing tensor, and goes on
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"never loaded, or hold NaN: neutral_residues.default.up.weight"
        ):
            logits(native)
    native.disable_adapters()
    assert torch.equal(logits(native), logits(tiny_llama()))


def test_loaded_weights_are_looked_at_once(tmp_path: Path) -> None:
    loaded = PeftModel.from_pretrained(tiny_llama(), saved(extended_llama(), tmp_path))
    layers = residue_layers(loaded).values()
    assert not any(layer.loaded["default"] for layer in layers)
    logits(loaded)
    assert all(layer.loaded["default"] for layer in layers)


def test_a_name_of_which_nothing_was_loaded_can_be_used_again(tmp_path: Path) -> None:
    folder = saved(extended_llama(), tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), folder)
    loaded.add_adapter("other", PeftConfig.from_pretrained(folder))
    loaded.delete_adapter("other")
    loaded.add_adapter("other", NeutralResiduesConfig(width=4))
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), logits(tiny_llama()))
