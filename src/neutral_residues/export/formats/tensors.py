"""The format `safetensors`: the adapter alone as plain tensors, with the formula, for any runtime.

model.safetensors        layers.3.gate.weight (R, D), .up.weight (R, D), .down.weight (D, R), and
                         with a gate .block_gate.weight (1, D) and maybe .block_gate.bias (1);
                         head.down.weight (K, D), .up.weight (V, K) and the same gate, where the
                         output head has a residue
neutral_residues.json    the formulas, the sizes, and which module of which backbone each layer is
reference.py             the formulas in thirty lines of PyTorch
"""

from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors.torch import save_file

from neutral_residues.export.parts import Adapter, Parts
from neutral_residues.files import write_json, write_text
from neutral_residues.tuner.blocks import describe_backbone
from neutral_residues.tuner.head import GatedHead

_LAYERS, _HEAD = (
    (Path(__file__).parent / f"{name}.py.template").read_text(encoding="utf-8")
    for name in ("tensors", "tensors_head")
)

_SILU = "z * torch.sigmoid(z)"
_GELU_TANH = "0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))"
ACTIVATIONS = {
    "silu": _SILU,
    "swish": _SILU,
    "relu": "z.clamp(min=0)",
    "relu2": "z.clamp(min=0) ** 2",
    "gelu": "z * 0.5 * (1 + torch.erf(z / 2**0.5))",
    "gelu_new": _GELU_TANH,
    "gelu_pytorch_tanh": _GELU_TANH,
    "gelu_fast": _GELU_TANH,
    "quick_gelu": "z * torch.sigmoid(1.702 * z)",
    "sigmoid": "torch.sigmoid(z)",
    "tanh": "torch.tanh(z)",
}
GATES = {
    "relu": "s.clamp(min=0)",
    "elu": "torch.where(s > 0, s, torch.exp(s) - 1)",
    "sigmoid": "torch.sigmoid(s)",
    "none": "1",
}


def tensors_refusal(parts: Parts) -> str | None:
    """Why this format cannot hold the extension, or None."""
    if len(parts.adapters) != 1:
        return f"it holds one adapter; this model has {len(parts.adapters)}"
    adapter = parts.adapters[0]
    if len(set(parts.layer_numbers(adapter).values())) < len(adapter.by_block):
        blocks = ", ".join(adapter.by_block)
        return f"it names blocks by their layer; this adapter is parallel to {blocks}"
    if adapter.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        return f"it knows the activations {known}; this adapter has {adapter.activation}"
    return None


def write_tensors(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write tensors, description and reference into `folder`."""
    adapter = parts.adapters[0]
    tensors = {
        f"layers.{number}.{name}": parameter.detach().to(dtype).contiguous()
        for block, number in parts.layer_numbers(adapter).items()
        for name, parameter in adapter.by_block[block].named_parameters()
    }
    if adapter.head is not None:
        for name, parameter in adapter.head.named_parameters():
            tensors[f"head.{name}"] = parameter.detach().to(dtype).contiguous()
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "neutral_residues.json", _description(parts, adapter))
    bias = ' + w["block_gate.bias"]' if adapter.has_bias else ""
    template = Template(_LAYERS + (_HEAD if adapter.head is not None else ""))
    text = template.substitute(
        width_in=adapter.width_in,
        activation=ACTIVATIONS[adapter.activation],
        gate=GATES[adapter.kind],
        logits="None" if adapter.kind == "none" else f'x @ w["block_gate.weight"].T{bias}',
        head_logits="None" if adapter.kind == "none" else f'h @ w["block_gate.weight"].T{bias}',
    )
    write_text(folder / "reference.py", text)


def _description(parts: Parts, adapter: Adapter) -> dict[str, Any]:
    backbone = {"name": parts.backbone.name_or_path, "model_type": parts.model_type}
    return {
        "formula": "out(x) = block(x) + g(s) * down(act(gate(x)) * up(x)), s = block_gate(x)",
        "gate": {"kind": adapter.kind, "formula": GATES[adapter.kind]},
        "activation": {"name": adapter.activation, "formula": ACTIVATIONS[adapter.activation]},
        "shapes": {name: list(p.shape) for name, p in adapter.first.named_parameters()},
        "D": adapter.width_in,
        "R": adapter.width,
        "layers": {str(number): block for block, number in parts.layer_numbers(adapter).items()},
        "head": _head_description(parts, adapter.head),
        "backbone": backbone | describe_backbone(parts.backbone),
    }


def _head_description(parts: Parts, head: GatedHead | None) -> dict[str, Any] | None:
    if head is None:
        return None
    return {
        "formula": "logits(h) = head(h) + up(g(s) * down(h)), s = block_gate(h), before soft caps"
        " and scales",
        "module": parts.head_name,
        "shapes": {name: list(p.shape) for name, p in head.named_parameters()},
        "K": head.down.out_features,
        "V": head.up.out_features,
    }
