"""Thresholds: what they make of a gate, by hand; saved with the extension, for its weights only."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from neutral_residues import NeutralResiduesConfig, UserError
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.gates import (
    extension_digest,
    gates,
    observe_gates,
    set_thresholds,
    under_thresholds,
)
from neutral_residues.tuner.layer import no_skipping
from neutral_residues.tuner.neutral import Gate
from neutral_residues.tuner.thresholds import Threshold, Thresholds, weights_digest
from tiny_llama import extended_llama, logits, outputs, perturb, saved, tiny_llama, token_ids

READS = ("tokens", "layer")


def at(model: nn.Module, quantile: float, form: Any = "cut") -> Thresholds:
    """On every gate that quantile of what it says, or 0 if that is less."""
    with observe_gates(model) as seen, torch.no_grad():
        model(input_ids=token_ids(8, 32))
    values = {name: max(0.0, float(x.quantile(quantile))) for name, x in seen.items()}
    return Thresholds(form, values, extension_digest(model))


@pytest.mark.parametrize(("form", "expected"), [("cut", [0, 0, 0, 3]), ("shift", [0, 0, 0, 1])])
def test_by_hand(form: Any, expected: list[float]) -> None:
    gate = Gate.of("relu", torch.tensor([-1.0, 1.0, 2.0, 3.0]), Threshold(2.0, form))
    assert gate.gate.tolist() == expected
    assert ((gate.logits <= 0) == (gate.gate == 0)).all(), "what skipping looks at"
    assert Gate.of("relu", torch.tensor([math.nan]), Threshold(2.0, form)).gate.isnan().all()
    plain = torch.tensor([-1.0, 0.5])
    assert torch.equal(Gate.of("relu", plain, Threshold(0.0, form)).gate, plain.relu())


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("form", ["cut", "shift"])
def test_saved_and_loaded_by_every_way(tmp_path: Path, reads: str, form: str) -> None:
    tiny_llama().save_pretrained(tmp_path / "backbone")
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path / "backbone")
    model = get_peft_model(backbone, NeutralResiduesConfig(width=8, gate_reads=reads)).eval()
    trained = logits(perturb(model))
    set_thresholds(model, at(model, 0.8, form))
    calibrated = logits(model)
    assert not torch.equal(calibrated, trained)
    with under_thresholds(model, None):
        assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model), calibrated)
    folder = saved(model, tmp_path / "extension")
    for loaded in (
        PeftModel.from_pretrained(tiny_llama(), folder),
        AutoPeftModelForCausalLM.from_pretrained(folder),
        AutoModelForCausalLM.from_pretrained(folder),
    ):
        assert torch.equal(logits(loaded), calibrated)
    set_thresholds(model, None)
    assert torch.equal(logits(model), trained)
    assert torch.equal(
        logits(PeftModel.from_pretrained(tiny_llama(), saved(model, folder))), trained
    )


@pytest.mark.parametrize("reads", READS)
def test_skipping_skips_what_thresholds_close(reads: str) -> None:
    model = extended_llama(gate_reads=reads)
    for quantile in (0.3, 0.9, 1.0):
        set_thresholds(model, at(model, quantile))
        with no_skipping(model):
            plain = outputs(model)
        torch.testing.assert_close(outputs(model), plain, atol=1e-5, rtol=1e-4)
    # The largest logit in each layer was found with residues in the layers below.
    high = dict.fromkeys(gates(model), 1000000.0)
    set_thresholds(model, replace(at(model, 1.0), values=high))
    assert torch.equal(outputs(model), outputs(tiny_llama()))


def test_other_weights_and_other_gates_are_refused(tmp_path: Path) -> None:
    model = extended_llama(gate_reads="tokens")
    thresholds = at(model, 0.8)
    with pytest.raises(UserError, match=r"other weights.*neutral calibrate"):
        set_thresholds(extended_llama(seed=5, gate_reads="tokens"), thresholds)
    own = extended_llama()
    with pytest.raises(UserError, match="another extension: gates"):
        set_thresholds(own, replace(thresholds, weights=extension_digest(own)))
    set_thresholds(model, thresholds)
    folder = saved(model, tmp_path)
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[min(tensors)] += 1  # trained further
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="trained further"):
        PeftModel.from_pretrained(tiny_llama(), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version"),
        ({"form": "soft"}, "cut, shift"),
        ({"values": {"lm_head": -1.0}}, "0 or more"),
        ({"values": {"lm_head": math.inf}}, "0 or more"),
        ({"values": 3}, "cannot be read"),
        ({"more": 3}, "cannot be read"),
    ],
)
def test_bad_thresholds_in_a_saved_folder(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = extended_llama(gate_reads="tokens")
    set_thresholds(model, at(model, 0.8))
    file = saved(model, tmp_path) / "adapter_config.json"
    values = json.loads(file.read_text())
    values["thresholds"] |= changes
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_gates_that_are_never_zero_and_fresh_weights() -> None:
    thresholds = at(extended_llama(), 0.8)
    for kind, message in (("elu", "can be exactly 0"), ("none", "has no gates")):
        with pytest.raises(UserError, match=message):
            set_thresholds(extended_llama(block_gate=kind), thresholds)
    with pytest.raises(UserError, match="these are new"):
        NeutralResiduesConfig(thresholds=thresholds.to_dict())


def test_the_digest_depends_on_values_alone() -> None:
    one, other = torch.randn(3, 4), torch.randn(5)
    assert weights_digest([one, other]) == weights_digest([other, one])
    half = one.to(torch.bfloat16)
    assert weights_digest([half]) == weights_digest([half.float()]) != weights_digest([one])
    assert weights_digest([one]) != weights_digest([one.t()])


OVER = 20


def over_many(model: nn.Module, form: Any = "cut") -> Thresholds:
    """At the mean of the gates on some text."""
    reads = embeddings_layer(model) is not None
    value = float(gate_of(model, token_ids(4, 50)).mean()) if reads else 1.0
    return Thresholds(form, dict.fromkeys(gates(model), value), extension_digest(model), OVER)


@torch.no_grad()
def gate_of(model: nn.Module, ids: Tensor, **arguments: Any) -> Tensor:
    """(B, T) the gate that reads the text, of a pass over these tokens."""
    model(input_ids=ids, **arguments)
    layer = embeddings_layer(model)
    assert layer is not None
    return layer.gates["default"].gate[..., 0]


def reading() -> PeftModel:
    """Gates up to about 1, open on half of the tokens."""
    model = extended_llama(gate_reads="tokens")
    with torch.no_grad():
        for gate in gates(model).values():
            gate.block_gate.weight.mul_(0.1)
            gate.block_gate.bias.zero_()
    return model


@pytest.mark.parametrize("form", ["cut", "shift"])
def test_the_mean_gate_by_hand(form: Any) -> None:
    model, ids = reading(), token_ids(1, 50)
    trained = gate_of(model, ids)[0]
    set_thresholds(model, over_many(model, form))
    (value,) = (gate.threshold.value for gate in gates(model).values())
    means = [trained[max(0, t - OVER + 1) : t + 1].mean() for t in range(50)]
    expected = torch.stack(
        [
            (gate - value if form == "shift" else gate) if mean > value else 0 * gate
            for gate, mean in zip(trained, means, strict=True)
        ]
    ).clamp(min=0)
    torch.testing.assert_close(gate_of(model, ids)[0], expected, atol=1e-6, rtol=1e-5)
    assert 0 < (expected > 0).sum() < (trained > 0).sum()
    with observe_gates(model) as seen:
        gate_of(model, ids)
    (logits,) = seen.values()
    torch.testing.assert_close(logits[0, :, 0].relu(), trained, atol=1e-6, rtol=1e-5)


def test_the_mean_gate_token_by_token_padded_and_packed() -> None:
    model, ids = reading(), token_ids(2, 60)
    set_thresholds(model, over_many(model))
    whole = gate_of(model, ids)
    for cut in (1, 10, 40):
        cache = DynamicCache()
        torch.testing.assert_close(
            gate_of(model, ids[:, :cut], past_key_values=cache), whole[:, :cut]
        )
        for t in range(cut, 60):
            found = gate_of(model, ids[:, t : t + 1], past_key_values=cache)
            torch.testing.assert_close(found[:, 0], whole[:, t], atol=1e-5, rtol=1e-4)
    padded = torch.cat([torch.full((2, 4), 9), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 4, dtype=torch.long), torch.ones_like(ids)], dim=1)
    torch.testing.assert_close(gate_of(model, padded, attention_mask=mask)[:, 4:], whole)
    packed = torch.cat([ids[:1], ids[1:]], dim=1)
    positions = torch.arange(60).repeat(2)[None]
    torch.testing.assert_close(
        gate_of(model, packed, position_ids=positions), whole.flatten()[None], atol=1e-5, rtol=1e-4
    )


def test_gates_in_the_layers_take_no_mean() -> None:
    model = extended_llama()
    with pytest.raises(UserError, match="only a gate that reads the text"):
        set_thresholds(model, over_many(model))
