"""A Llama of width 32 with two layers, and what every test of this folder does with it."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from neutral_residues.tuner.config import NeutralResiduesConfig
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.layer import NeutralResiduesLayer, observe_residues, residue_layers
from neutral_residues.tuner.neutral import PREFIX


def tiny_llama(**changes: object) -> PreTrainedModel:
    """The same random weights at every call."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(LlamaConfig(**(settings | changes))).eval()


def perturb(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give every adapter weight a value that changes the output, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{PREFIX}." in f".{name}":
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
                if name.endswith("block_gate.bias"):  # no gate is closed on all tokens
                    parameter.abs_()
    return model


def extended_llama(seed: int = 1, adapter_name: str = "default", **settings: object) -> PeftModel:
    """A tiny Llama with a residue that does something; without other settings a gate in each
    layer, so that each can be set by itself."""
    config = NeutralResiduesConfig(**({"width": 8, "gate_reads": "layer"} | settings))
    model = get_peft_model(tiny_llama(), config, adapter_name=adapter_name)
    perturb(model, seed)
    return model.eval()


V, NUM_NEW_TOKENS = 64, 12
"""The backbone's tokens, and those of an extension of its own."""


def llama_with_tokens(**settings: Any) -> PeftModel:
    """New tokens under gates that read the text, about half of them shut."""
    common = {"gate_reads": "tokens", "new_tokens": NUM_NEW_TOKENS, "new_tokens_rank": 4}
    model = extended_llama(**(common | settings))
    layer = embeddings_layer(model)
    assert layer is not None
    with torch.no_grad():
        for reader in layer.readers().values():
            reader.block_gate.weight.mul_(0.1)
            reader.block_gate.bias.zero_()
    return model


def token_ids(batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(3, 64, (batch, length), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=token_ids()).logits


def saved(model: PeftModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def set_gates(model: nn.Module, open_share: float) -> None:
    """Shift every gate's b so that about this share of the tokens of `token_ids(8, 32)` is open."""
    values: dict[int, Tensor] = {}

    class GateLogits:
        def on_residue(self, layer: NeutralResiduesLayer, residue: Any, *_: Any) -> None:
            values[id(layer)] = residue.gate_logits.detach().flatten()

    layers = residue_layers(model)
    for layer in layers.values():  # from the first on: a gate changes what later layers read
        with observe_residues(layers, GateLogits()), torch.no_grad():
            model(input_ids=token_ids(8, 32))
        logits = values[id(layer)]
        # No gate at the edge: another order of sums could open it.
        edges = {0.0: logits.max() + 1, 1.0: logits.min() - 1}
        threshold = edges.get(open_share, logits.quantile(1 - open_share))
        for name in layer.known_adapters():
            with torch.no_grad():
                layer.adapter(name).block_gate.bias -= threshold


@torch.no_grad()
def outputs(model: nn.Module, **arguments: Any) -> Tensor:
    return model(input_ids=token_ids(8, 32), **arguments).logits


def two_adapters() -> PeftModel:
    """Adapters `french` and `german`; the second has another width and its gates are always
    open."""
    model = extended_llama(adapter_name="french")
    model.add_adapter("german", NeutralResiduesConfig(width=16, block_gate="none"))
    perturb(model, seed=3)
    return model.eval()
