"""The format `safetensors`: only the adapter, as plain tensors with their formulas, for any
runtime.

model.safetensors        layers.3.gate.weight (R, D), .up.weight (R, D), .down.weight (D, R); with a
                         gate .block_gate.weight (1, D) and, if it has a bias, .block_gate.bias (1);
                         with a residue on the output head, head.down.weight (K, D),
                         head.up.weight (V, K) and its gate as in a layer; if one gate reads tokens,
                         reader.{rows,code,window,block_gate}.{weight,bias} and no other gate; with
                         new tokens new_tokens.codes.weight (N, K), new_tokens.into.weight (D, K),
                         new_tokens.out_of.weight (K, D)
neutral_residues.json    formulas, sizes, and the name of each layer's module in the backbone
reference.py             the formulas in thirty lines of PyTorch
"""

from pathlib import Path
from string import Template
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from neutral_residues.export.parts import Adapter, Parts
from neutral_residues.files import write_json, write_text
from neutral_residues.tuner.blocks import describe_backbone
from neutral_residues.tuner.head import GatedHead
from neutral_residues.tuner.reader import WINDOW

_LAYERS, _HEAD, _READER, _TOKENS = (
    (Path(__file__).parent / f"{name}.py.template").read_text(encoding="utf-8")
    for name in ("tensors", "tensors_head", "tensors_reader", "tensors_new_tokens")
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
THRESHOLDS = {
    "cut": "torch.where(m > t, s, s.clamp(max=0))",
    "shift": "torch.where(m > t, s - t, s.clamp(max=0))",
}
GATES = {
    "relu": "s.clamp(min=0)",
    "elu": "torch.where(s > 0, s, torch.exp(s) - 1)",
    "sigmoid": "torch.sigmoid(s)",
    "none": "1",
}


def tensors_refusal(parts: Parts) -> str | None:
    """The reason why this format cannot hold the extension, or None if it can."""
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
    """Write tensors, description and reference code into `folder`."""
    adapter = parts.adapters[0]
    tensors = {
        f"layers.{number}.{name}": parameter.detach().to(dtype).contiguous()
        for block, number in parts.layer_numbers(adapter).items()
        for name, parameter in adapter.by_block[block].named_parameters()
    }
    others = {"head": adapter.head, "reader": adapter.reader, "new_tokens": adapter.tokens}
    for key, module in others.items():
        for name, parameter in module.named_parameters() if module is not None else ():
            tensors[f"{key}.{name}"] = parameter.detach().to(dtype).contiguous()
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "neutral_residues.json", _description(parts, adapter))
    write_text(folder / "reference.py", _code(adapter))


def _code(adapter: Adapter) -> str:
    template, reader = _LAYERS, adapter.reader
    facts = {"given": "", "gate_in_words": f"{GATES[adapter.kind]}, s = block_gate(x)"}
    if adapter.kind == "none":
        facts["gate_in_words"] = "1"
    if adapter.head is not None:
        template += _HEAD
    if adapter.tokens is not None:
        template += _TOKENS
        facts |= {"hidden_width": str(adapter.tokens.out_of.in_features), "log_gate": ""}
    if reader is not None:
        template += _READER
        facts |= {"given": ", g: torch.Tensor", "gate_in_words": "gate(embeddings), see below"}
        facts |= {"embedding_width": str(reader.rows.in_features), "num_tokens": str(WINDOW)}
        is_relu = adapter.kind == "relu"
        facts["first_token"] = "    s[:, 0] = 0\n" if is_relu else ""
        facts["first_token_words"] = "    s_0 = 0, at the first token\n" if is_relu else ""
        facts["log_gate"] = " + g.log()  # -inf where g is 0, also behind a soft cap"
    return Template(template).substitute(
        facts,
        width_in=adapter.width_in,
        activation=ACTIVATIONS[adapter.activation],
        gate=GATES[adapter.kind],
        threshold_of_reader=_threshold(adapter, '"reader"'),
        own_gate=_own_gate(adapter, "x"),
        own_gate_of_head=_own_gate(adapter, "h"),
    )


def _own_gate(adapter: Adapter, x: str) -> str:
    """Lines of code that compute g from the input of a block or of the head; empty if one gate
    reads tokens, since g is an argument then."""
    if adapter.reader is not None:
        return ""
    if adapter.kind == "none":
        return "    g = 1\n"
    bias = ' + w["block_gate.bias"]' if adapter.has_bias else ""
    key = "str(layer)" if x == "x" else '"head"'
    threshold = _threshold(adapter, key)
    return (
        f'    s = {x} @ w["block_gate.weight"].T{bias}\n{threshold}    g = {GATES[adapter.kind]}\n'
    )


def _threshold(adapter: Adapter, key: str) -> str:
    """Lines of code that apply the threshold of a gate to its s, if there is one."""
    if adapter.thresholds is None:
        return ""
    value = f'    t = DESCRIPTION["thresholds"]["values"][{key}]\n'
    mean, over = "    m = s\n", adapter.thresholds.over
    if over > 1:
        mean = "    sums = s.clamp(min=0).cumsum(1)\n"
        mean += f"    earlier = torch.nn.functional.pad(sums, (0, 0, {over}, 0))[:, : s.shape[1]]\n"
        mean += f"    counts = torch.arange(1, s.shape[1] + 1).clamp(max={over})[:, None]\n"
        mean += f"    m = (sums - earlier) / counts  # of the gates over the last {over} tokens\n"
    return f"{value}{mean}    s = {THRESHOLDS[adapter.thresholds.form]}\n"


def _description(parts: Parts, adapter: Adapter) -> dict[str, Any]:
    backbone = {"name": parts.backbone.name_or_path, "model_type": parts.model_type}
    own = ", s = block_gate({})" if adapter.reader is None else ", s as in reader"
    return {
        "formula": "out(x) = block(x) + g(s) * down(act(gate(x)) * up(x))" + own.format("x"),
        "gate": {"kind": adapter.kind, "formula": GATES[adapter.kind]},
        "thresholds": _threshold_description(parts, adapter),
        "activation": {"name": adapter.activation, "formula": ACTIVATIONS[adapter.activation]},
        "shapes": _shapes(adapter.first),
        "D": adapter.width_in,
        "R": adapter.width,
        "layers": {str(number): block for block, number in parts.layer_numbers(adapter).items()},
        "head": _head_description(parts, adapter.head, own.format("h")),
        "reader": _reader_description(parts, adapter),
        "new_tokens": _token_description(parts, adapter),
        "backbone": backbone | describe_backbone(parts.backbone),
    }


def _threshold_description(parts: Parts, adapter: Adapter) -> dict[str, Any] | None:
    """The thresholds by layer number, "head" or "reader", with their formula; None without."""
    thresholds = adapter.thresholds
    if thresholds is None:
        return None
    numbers = {block: str(number) for block, number in parts.layer_numbers(adapter).items()}
    other = "reader" if adapter.reader is not None else "head"
    return {
        "form": thresholds.form,
        "formula": f"s becomes {THRESHOLDS[thresholds.form]} before the gate; m: the mean of"
        f" max(s, 0) over the last {thresholds.over} tokens of the text",
        "values": {numbers.get(name, other): t for name, t in thresholds.values.items()},
        "promise": thresholds.promise,
    }


def _shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in module.named_parameters()}


def _head_description(parts: Parts, head: GatedHead | None, own: str) -> dict[str, Any] | None:
    if head is None:
        return None
    return {
        "formula": f"logits(h) = head(h) + up(g(s) * down(h)){own}, before soft caps and scales",
        "module": parts.head_name,
        "shapes": _shapes(head),
        "K": head.down.out_features,
        "V": head.up.out_features,
    }


def _reader_description(parts: Parts, adapter: Adapter) -> dict[str, Any] | None:
    reader = adapter.reader
    if reader is None:
        return None
    at_first = ", on which s is 0" if adapter.kind == "relu" else ""
    return {
        "formula": "s_t = block_gate(silu(window(e_{t-W+1} ... e_t))), e_t = code(silu(rows(r_t)))"
        ", r_t: embedding of token t, divided by its RMS; e is 0 before the first token" + at_first,
        "module": parts.embeddings_name,
        "shapes": _shapes(reader),
        "W": WINDOW,
    }


def _token_description(parts: Parts, adapter: Adapter) -> dict[str, Any] | None:
    tokens = adapter.tokens
    if tokens is None:
        return None
    log_gate = " + log g(s), -inf where g is 0" if adapter.reader is not None else ""
    return {
        "formula": "embedding of new token i = into(c_i); its logit = c_i . out_of(h)"
        + log_gate
        + ", before soft caps and scales; c_i: row i of codes, h: input of the output head",
        "modules": [parts.embeddings_name, parts.head_name],
        "shapes": _shapes(tokens),
        "N": tokens.num_tokens,
        "K": tokens.codes.embedding_dim,
        "first_id": parts.new_ids.start,
    }
