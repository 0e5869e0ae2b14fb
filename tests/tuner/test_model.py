"""PEFT's verbs and Transformers' own, on a tiny Llama: each is shown to matter before it is shown
to be undone."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaMLP

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.tuner.blocks import count_backbone_weights
from neutral_residues.tuner.layer import NeutralResiduesLayer, observe_residues
from neutral_residues.tuner.neutral import PREFIX, Residue
from tiny_llama import extended_llama, logits, perturb, saved, tiny_llama, token_ids

# --- attach, disable, detach


@pytest.mark.parametrize("gate", ["relu", "elu", "sigmoid", "none"])
def test_attached_it_changes_nothing_trained_it_does_disabled_it_does_not(gate: str) -> None:
    expected = logits(tiny_llama())
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, block_gate=gate)).eval()
    assert torch.equal(logits(model), expected)
    perturb(model)
    assert not torch.allclose(logits(model), expected, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)


def test_a_shut_gate_is_the_backbone_bit_for_bit() -> None:
    model = extended_llama(block_gate="relu")
    expected = logits(tiny_llama())
    assert not torch.equal(logits(model), expected)
    for layer in residue_layers(model).values():
        # The gate's weights are zero, so is its logit, and so is relu of it; W_o is not.
        for parameter in layer.neutral_residues["default"].block_gate.parameters():
            parameter.data.zero_()
    assert torch.equal(logits(model), expected)


def test_unload_gives_the_stock_modules_back() -> None:
    model = extended_llama()
    assert not torch.equal(logits(model), logits(tiny_llama()))
    stock = model.unload()
    assert type(stock.model.layers[0].mlp) is LlamaMLP
    assert not residue_layers(stock)
    assert torch.equal(logits(stock), logits(tiny_llama()))


@pytest.mark.parametrize("verb", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused(verb: str) -> None:
    model = extended_llama()
    with pytest.raises(UserError, match=r"cannot be merged.*unload\(\)"):
        getattr(model, verb)()


def test_only_the_residues_train() -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8))
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) >= 2 * 4
    assert all(f".{PREFIX}." in name for name in trainable)
    assert model.peft_config["default"].num_new_weights == sum(trainable.values())


def test_a_budget_becomes_a_width() -> None:
    # Width 128 and four layers, so that 20 % can be met.
    backbone = tiny_llama(hidden_size=128, num_hidden_layers=4, intermediate_size=256)
    num_backbone = sum(p.numel() for p in backbone.parameters())
    config = get_peft_model(backbone, NeutralResiduesConfig(budget=0.2)).peft_config["default"]
    assert config.num_backbone_weights == num_backbone
    assert config.num_new_weights / num_backbone == pytest.approx(0.2, rel=0.02)


def test_a_second_adapter_is_sized_by_the_backbone_alone() -> None:
    model = extended_llama(modules_to_save=["lm_head"])
    num_backbone = sum(p.numel() for p in tiny_llama().parameters())
    assert count_backbone_weights(model) == num_backbone
    model.add_adapter("second", NeutralResiduesConfig(width=4))
    assert model.peft_config["second"].num_backbone_weights == num_backbone


# --- several extensions


def layer_deltas(model: PeftModel) -> list[Tensor]:
    """What every residue added, in the order of computation."""

    class Deltas:
        def __init__(self) -> None:
            self.seen: list[Tensor] = []

        def on_residue(self, layer: NeutralResiduesLayer, residue: Residue) -> None:
            self.seen.append(residue.delta)

    deltas = Deltas()
    with observe_residues(residue_layers(model), deltas):
        logits(model)
    return deltas.seen


def two_extensions() -> PeftModel:
    """Of different widths and gates, in the last layer only, so that both always see the same
    input."""
    model = extended_llama(adapter_name="french", layers_to_transform=[1])
    config = NeutralResiduesConfig(width=4, block_gate="sigmoid", layers_to_transform=[1])
    model.add_adapter("danish", config)
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
    (french,) = layer_deltas(model)
    model.set_adapter("danish")
    (danish,) = layer_deltas(model)
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


def test_a_sleeping_extension_does_not_train() -> None:
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


def test_several_extensions_are_saved_apart(tmp_path: Path) -> None:
    model = two_extensions()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "danish", adapter_name="danish")
    loaded.load_adapter(tmp_path / "french", adapter_name="french")
    for name in ("danish", "french"):
        model.set_adapter(name)
        loaded.set_adapter(name)
        assert torch.equal(logits(loaded), logits(model))


# --- where


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, [0, 1]),
        ({"layers_to_transform": [1]}, [1]),
        ({"layers_to_transform": 0}, [0]),
        ({"exclude_modules": ["layers.0.mlp"]}, [1]),
        ({"target_modules": ["mlp"]}, [0, 1]),
        ({"target_modules": ["mlp"], "layers_to_transform": [0]}, [0]),
        ({"target_modules": ["layers.1.mlp"]}, [1]),
        ({"target_modules": r".*\.0\.mlp"}, [0]),
    ],
)
def test_the_chosen_layers_are_extended(
    settings: dict[str, Any], layers: list[int], tmp_path: Path
) -> None:
    model = extended_llama(**settings)
    assert [int(name.split(".")[-2]) for name in residue_layers(model)] == layers
    real = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.peft_config["default"].num_new_weights == real
    loaded = PeftModel.from_pretrained(tiny_llama(), saved(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers_to_transform": [2]},
            r"layers_to_transform; got \[2\]; allowed: numbers from 0 to 1",
        ),
        ({"layers_to_transform": []}, r"layers_to_transform; got \[\]"),
        ({"target_modules": ["ffn"]}, "target_modules match no module"),
        (
            {"target_modules": r".*\.mlp.*"},
            r"inside another; got model.layers.0.mlp.\w+ inside model.layers.0.mlp;",
        ),
        ({"target_modules": ["down_proj"]}, "down_proj, which does not map width 32 to itself"),
    ],
)
def test_layers_that_cannot_be_extended_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, **settings))


def test_a_model_that_is_not_from_transformers_is_refused() -> None:
    with pytest.raises(UserError, match="model; got Sequential; allowed: a Transformers model"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), NeutralResiduesConfig(width=8))


@pytest.mark.filterwarnings(
    "ignore:Adapter name .* should not be contained in the prefix:UserWarning"
)
@pytest.mark.parametrize("name", ["x", "neutral", "residues", "fr.ca", "train", "keys", "gate"])
@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
def test_adapter_names_that_would_be_confused_are_refused(name: str, native: bool) -> None:
    attach = tiny_llama().add_adapter if native else partial(get_peft_model, tiny_llama())
    with pytest.raises(UserError, match=f"adapter name; got {name}; allowed: two characters"):
        attach(NeutralResiduesConfig(width=8), adapter_name=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_gate": "tanh"}, "block_gate; got tanh; allowed: relu, elu, sigmoid, none"),
        ({"init": "big"}, "init; got big; allowed: usual, paper"),
        ({"width": 0}, "width; got 0; allowed: a whole number, 1 or more"),
        ({"width": 8.0}, "width; got 8.0"),
        ({"width": True}, "width; got True"),
        ({"budget": 0}, "budget; got 0; allowed: a share above 0"),
        ({"budget": -0.1}, "budget; got -0.1"),
        ({"budget": float("nan")}, "budget; got nan"),
        ({"budget": "20%"}, "budget; got 20%"),
        (
            {"activation": "swiglu"},
            "activation; got swiglu; allowed: one of Transformers', without weights; ",
        ),
        (
            {"activation": "prelu"},
            "activation; got prelu; allowed: one of Transformers', without weights",
        ),
        (
            {"target_modules": ".*mlp", "layers_to_transform": [0]},
            "layers_to_transform has no effect",
        ),
        ({"layers_pattern": "layers"}, "layers_pattern has no effect without layers_to_transform"),
    ],
)
def test_bad_settings_are_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NeutralResiduesConfig(**settings)


@pytest.mark.parametrize(
    ("backbone", "activation", "expected"),
    [
        ("silu", None, "silu"),
        ("gelu", None, "gelu"),
        ("xielu", None, "silu"),
        ("silu", "relu", "relu"),
    ],
)
def test_the_activation_is_the_backbones_unless_set(
    backbone: str, activation: str | None, expected: str
) -> None:
    model = tiny_llama(hidden_act=backbone)
    config = get_peft_model(
        model, NeutralResiduesConfig(width=8, activation=activation)
    ).peft_config["default"]
    assert config.activation == expected


def test_the_activation_of_a_model_that_calls_it_otherwise() -> None:
    backbone = AutoModelForCausalLM.from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    )
    assert (
        get_peft_model(backbone, NeutralResiduesConfig(width=8)).peft_config["default"].activation
        == "gelu_new"
    )


# --- how it runs


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


def test_it_compiles_as_one_graph(tmp_path: Path) -> None:
    # Loaded and never run: the check of the loaded weights must not break the graph either.
    model = PeftModel.from_pretrained(tiny_llama(), saved(extended_llama(), tmp_path)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = logits(compiled)
    torch.testing.assert_close(found, logits(extended_llama()), atol=1e-5, rtol=1e-5)


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


def test_greedy_decoding_with_a_cache_and_without() -> None:
    model = extended_llama()
    settings = {
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "do_sample": False,
        "attention_mask": torch.ones(2, 12),
    }
    ids = token_ids()
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(input_ids=ids, use_cache=True, **settings))


def test_the_trainer_resumes_to_the_same_weights(tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in token_ids(batch=8)]

    def train(folder: str, resume: str | None) -> PeftModel:
        model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8))
        settings = TrainingArguments(
            str(tmp_path / folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        Trainer(model, settings, train_dataset=rows).train(resume_from_checkpoint=resume)
        return model.eval()

    through = train("through", None)
    assert not torch.equal(logits(through), logits(tiny_llama()))
    resumed = train("resumed", str(tmp_path / "through" / "checkpoint-2"))
    assert torch.equal(logits(resumed), logits(through))


def test_two_hooks_at_once_are_refused() -> None:
    layers = residue_layers(extended_llama())

    class Nobody:
        def on_residue(self, layer: NeutralResiduesLayer, residue: Residue) -> None: ...

    with observe_residues(layers, Nobody()):
        with pytest.raises(UserError, match="observed already"), observe_residues(layers, Nobody()):
            pass
        assert all(layer.residue_hook is not None for layer in layers.values())
    assert all(layer.residue_hook is None for layer in layers.values())


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, [1, 2, 3]),
        ({"block_gate": "none"}, [0, 1, 2, 3]),
        ({"first_layer": 0}, [0, 1, 2, 3]),
        ({"first_layer": 2}, [2, 3]),
        ({"layers_to_transform": [0, 3]}, [0, 3]),
    ],
)
def test_a_gated_adapter_leaves_the_first_layer_alone(settings: dict, layers: list[int]) -> None:
    model = get_peft_model(tiny_llama(num_hidden_layers=4), NeutralResiduesConfig(**settings))
    names = [name.removeprefix("base_model.model.") for name in residue_layers(model)]
    assert names == [f"model.layers.{layer}.mlp" for layer in layers]


def test_two_ways_to_choose_layers_at_once_are_refused() -> None:
    with pytest.raises(UserError, match="first_layer has no effect with layers_to_transform"):
        NeutralResiduesConfig(first_layer=1, layers_to_transform=[1])
