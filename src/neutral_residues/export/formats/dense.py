"""The format `dense`: the backbone's own stock architecture, with the extension folded into its
matrices.

A gate-less adapter with the backbone's activation makes a gated feed-forward block wider, F to F +
R:

    FFN(x) + A(x) = [W_down W_o] ( act([W_gate; W_g] x) * [W_up; W_i] x )

Layers without an adapter get R zeros, since a stock configuration has one width for all: exact,
though not free. Low-rank updates are added to the matrices they belong to, by PEFT.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor

from neutral_residues.export.formats.remote_code import save_filled
from neutral_residues.export.parts import Parts
from neutral_residues.tuner.blocks import backbone_activation
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp
from neutral_residues.tuner.neutral import GatedAdapter


def dense_refusal(parts: Parts) -> str | None:
    """Why this format cannot hold the extension, or None."""
    if not parts.adapters:
        return None
    config = parts.backbone.config.get_text_config(decoder=True)
    activation = backbone_activation(config.to_dict())
    for adapter in parts.adapters:
        if adapter.block_gate != "none":
            return f"its {adapter.block_gate} gate depends on the token, so no matrix equals it"
        if adapter.activation != activation:
            return (
                f"a wider block has one activation, {activation}; this adapter has"
                f" {adapter.activation}"
            )
        strange = parts.strange_place(adapter)
        if strange is not None:
            return f"only a feed-forward block becomes wider; this adapter runs beside {strange}"
    width = getattr(config, "intermediate_size", None)
    for name, block in parts.ffns.items():
        mlp = as_gated_mlp(block)
        if mlp is None or mlp.gate.out_features != width:
            return (
                f"{name} is no gated linear unit of the width in the configuration, so it cannot"
                " just be wider"
            )
    return None


def write_dense(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write configuration and weights of the stock model into `folder`."""
    backbone = parts.backbone
    config, weights = copy.deepcopy(backbone.config), backbone.state_dict()
    config.get_text_config(decoder=True).intermediate_size += sum(
        adapter.width for adapter in parts.adapters
    )
    for place, block in parts.ffns.items() if parts.adapters else ():
        mlp = as_gated_mlp(block)
        assert mlp is not None
        beside = [
            adapter.beside.get(place) or _nothing(mlp, adapter.width) for adapter in parts.adapters
        ]
        weights |= {f"{place}.{key}": tensor for key, tensor in _wider(mlp, beside).items()}
    save_filled(type(backbone), config, weights, folder, dtype=dtype, like=backbone)


def _nothing(mlp: GatedMLP, width: int) -> GatedAdapter:
    """An adapter of that width that adds 0."""
    adapter = GatedAdapter(mlp.gate.in_features, width, activation=mlp.activation, kind="none")
    for parameter in adapter.parameters():
        torch.nn.init.zeros_(parameter)
    return adapter


@torch.no_grad()
def _wider(mlp: GatedMLP, beside: list[GatedAdapter]) -> dict[str, Tensor]:
    tensors = {
        "gate_proj.weight": torch.cat([mlp.gate.weight, *(a.gate.weight for a in beside)]),
        "up_proj.weight": torch.cat([mlp.up.weight, *(a.up.weight for a in beside)]),
        "down_proj.weight": torch.cat([mlp.down.weight, *(a.down.weight for a in beside)], dim=1),
    }
    width = sum(a.gate.out_features for a in beside)
    for name, bias in (("gate_proj", mlp.gate.bias), ("up_proj", mlp.up.bias)):
        if bias is not None:
            tensors[f"{name}.bias"] = torch.cat([bias, bias.new_zeros(width)])
    return tensors
