"""The format `safetensors`: the adapter alone as plain tensors, with the formula, for a runtime of
one's own.

model.safetensors        layers.3.w_g (R, D), .w_i (R, D), .w_o (D, R), and where there is a gate .w (D), .b (1)
neutral_residues.json    the formula, the sizes, the layers, and which module of which backbone each belongs to
reference.py             the formula in twenty lines of PyTorch
"""

from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from neutral_residues.export.parts import Adapter, Parts
from neutral_residues.files import write_json, write_text
from neutral_residues.tuner.blocks import describe_backbone

_REFERENCE = Template((Path(__file__).parent / "tensors.py.template").read_text(encoding="utf-8"))

ACTIVATIONS = {
    "silu": "z * torch.sigmoid(z)",
    "swish": "z * torch.sigmoid(z)",
    "relu": "z.clamp(min=0)",
    "relu2": "z.clamp(min=0) ** 2",
    "gelu": "z * 0.5 * (1 + torch.erf(z / 2**0.5))",
    "gelu_new": "0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))",
    "gelu_pytorch_tanh": (
        "0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))"
    ),
    "gelu_fast": "0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))",
    "quick_gelu": "z * torch.sigmoid(1.702 * z)",
    "sigmoid": "torch.sigmoid(z)",
    "tanh": "torch.tanh(z)",
}
GATES = {
    "relu": "s.clamp(min=0)",
    "elu": "torch.where(s > 0, s, torch.exp(s) - 1)",
    "sigmoid": "torch.sigmoid(s)",
}


def plain_refusal(parts: Parts) -> str | None:
    """Why this format cannot hold the extension, or None."""
    if len(parts.adapters) != 1:
        return f"it holds one adapter; this model has {len(parts.adapters)}"
    adapter = parts.adapters[0]
    if len(set(parts.layer_numbers(adapter).values())) < len(adapter.beside):
        return (
            f"it names blocks by their layer; this adapter runs beside {', '.join(adapter.beside)}"
        )
    if adapter.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        return (
            f"it writes the formulas of the activations {known}; this adapter has"
            f" {adapter.activation}"
        )
    return None


def write_plain(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write tensors, description and reference into `folder`."""
    adapter = parts.adapters[0]
    tensors: dict[str, Tensor] = {}
    for block, number in parts.layer_numbers(adapter).items():
        a = adapter.beside[block]
        layer = {"w_g": a.gate.weight, "w_i": a.up.weight, "w_o": a.down.weight}
        if a.block_gate is not None:
            layer["w"] = a.block_gate.weight[0]
            layer |= {} if a.block_gate.bias is None else {"b": a.block_gate.bias}
        tensors |= {
            f"layers.{number}.{name}": tensor.detach().to(dtype) for name, tensor in layer.items()
        }
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    write_json(folder / "neutral_residues.json", _description(parts, adapter))
    width_in = next(iter(adapter.beside.values())).gate.in_features
    gated = adapter.block_gate != "none"
    gate = f"{adapter.block_gate}(w . x{' + b' if adapter.has_bias else ''})" if gated else "1"
    text = _REFERENCE.substitute(
        gate=gate,
        activation=ACTIVATIONS[adapter.activation],
        width_in=width_in,
        lines=_gate_lines(adapter),
    )
    write_text(folder / "reference.py", text)


def _gate_lines(adapter: Adapter) -> str:
    if adapter.block_gate == "none":
        return "return adapter"
    bias = ' + WEIGHTS[f"layers.{layer}.b"]' if adapter.has_bias else ""
    logits = 's = (x @ WEIGHTS[f"layers.{layer}.w"]).unsqueeze(-1)' + bias
    return f"{logits}\n    return ({GATES[adapter.block_gate]}) * adapter"


def _description(parts: Parts, adapter: Adapter) -> dict[str, Any]:
    gate = adapter.block_gate
    return {
        "formula": "out(x) = block(x) + g(x) * W_o ( act(W_g x) * (W_i x) )",
        "gate": {
            "kind": gate,
            "formula": None if gate == "none" else GATES[gate],
            "s": "w . x + b (b where saved)",
        },
        "activation": {"name": adapter.activation, "formula": ACTIVATIONS[adapter.activation]},
        "shapes": {"w_g": "(R, D)", "w_i": "(R, D)", "w_o": "(D, R)", "w": "(D)", "b": "(1)"},
        "D": next(iter(adapter.beside.values())).gate.in_features,
        "R": adapter.width,
        "layers": {str(number): block for block, number in parts.layer_numbers(adapter).items()},
        "backbone": (
            {"name": parts.backbone.name_or_path, "model_type": parts.model_type}
            | describe_backbone(parts.backbone)
        ),
    }
