"""The format `dense`: the backbone's own architecture, with the extension in its matrices.

A gate-less adapter with the backbone's activation makes a gated feed-forward block wider, from F to
F + R:

    FFN(x) + A(x) = [W_down W_o] ( act([W_gate; W_g] x) * [W_up; W_i] x )

Layers without an adapter are widened by zeros, since a configuration has one width for all layers;
outputs stay exact, but zeros cost time too. A gate-less residue on the output head is added to the
head's matrix, W + W_b W_a; a head that was tied to the embeddings is untied. LoRA updates are
merged by PEFT.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from neutral_residues.export.formats.saving import save_model
from neutral_residues.export.parts import Adapter, Parts
from neutral_residues.tuner.blocks import backbone_activation
from neutral_residues.tuner.gated_mlp import GatedMLP
from neutral_residues.tuner.neutral import GatedAdapter


def dense_refusal(parts: Parts) -> str | None:
    """The reason why this format cannot hold the extension, or None if it can."""
    if not parts.adapters:
        return None
    config = parts.backbone.config.get_text_config(decoder=True)
    activation = backbone_activation(config.to_dict())
    for adapter in parts.adapters:
        if adapter.kind != "none":
            return f"its {adapter.kind} gate depends on the token, so no matrix equals it"
        if (own := adapter.activation) != activation:
            return f"a wider block has one activation, {activation}; this adapter has {own}"
        if target := parts.first_non_ffn_target(adapter):
            return f"only a feed-forward block becomes wider; this adapter is parallel to {target}"
    width = getattr(config, "intermediate_size", None)
    for name, mlp in parts.ffns.items():
        if mlp is None or mlp.gate.out_features != width:
            return f"{name} is not a gated MLP of the width in the configuration"
    return None


def write_dense(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write configuration and weights of the wider model into `folder`."""
    backbone, adapters = parts.backbone, parts.adapters
    config, weights = copy.deepcopy(backbone.config), backbone.state_dict()
    if adapters:
        config.get_text_config(decoder=True).intermediate_size += sum(a.width for a in adapters)
        for name, mlp in parts.ffns.items():
            assert mlp is not None
            wider = _wider(mlp, [adapter.at(name) for adapter in adapters])
            weights |= {f"{name}.{key}": tensor for key, tensor in wider.items()}
    if parts.has_head:
        for part in (config, config.get_text_config(decoder=True)):
            part.tie_word_embeddings = False
        key = f"{parts.head_name}.weight"
        weights[key] = _with_residues(weights[key], adapters)
    save_model(type(backbone), config, weights, folder, dtype=dtype, like=backbone)


def computes_dense(parts: Parts) -> bool:
    """Whether some stored weights are sums (merged updates, a residue on the head), and so are
    rounded once more in 16 bits."""
    return parts.merged or parts.has_head


@torch.no_grad()
def _with_residues(weight_VD: Tensor, adapters: Sequence[Adapter]) -> Tensor:
    for head in (adapter.head for adapter in adapters if adapter.head is not None):
        weight_VD = weight_VD + head.up.weight @ head.down.weight
    return weight_VD


@torch.no_grad()
def _wider(mlp: GatedMLP, adapters: Sequence[GatedAdapter]) -> dict[str, Tensor]:
    tensors = {
        "gate_proj.weight": torch.cat([mlp.gate.weight, *(a.gate.weight for a in adapters)]),
        "up_proj.weight": torch.cat([mlp.up.weight, *(a.up.weight for a in adapters)]),
        "down_proj.weight": torch.cat([mlp.down.weight, *(a.down.weight for a in adapters)], dim=1),
    }
    width = sum(a.gate.out_features for a in adapters)
    for name, bias in (("gate_proj", mlp.gate.bias), ("up_proj", mlp.up.bias)):
        if bias is not None:
            tensors[f"{name}.bias"] = torch.cat([bias, bias.new_zeros(width)])
    return tensors
