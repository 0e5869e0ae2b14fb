"""Where the feed-forward blocks of a pretrained decoder are, found from its structure and not from its name.

Promise: every module named here takes the hidden states as its first argument and returns them in the same width. A model in
which no such module is found is refused with the children that were seen. The vision or audio part of a multimodal model is
left alone: only the decoder is searched.
"""

from collections.abc import Mapping

from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from neutral_residues.errors import UserError

FFN_NAMES = ("mlp", "feed_forward", "ffn", "mlp_block", "block_sparse_moe", "shared_mlp")
# Where a sparse and a shared block stand side by side, both read the same input and are summed: one place serves both.
PREFERRED_OF_TWO = "shared_mlp"

ACTIVATION_KEYS = (
    "hidden_activation",
    "hidden_act",
    "activation_function",
    "mlp_hidden_act",
    "activation",
    "hidden_activation_fn",
)
FALLBACK_ACTIVATION = "silu"


def find_ffns(model: nn.Module) -> dict[str, nn.Module]:
    """The feed-forward module of every layer of the decoder: full module name -> module, in layer order.

    Raises:
        UserError: naming the children of the first layer that has none.
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    decoder = model if decoder is None else decoder
    prefix = next((f"{name}." for name, module in model.named_modules() if module is decoder and name), "")
    layers = _decoder_layers(decoder)
    if not layers:
        raise UserError(
            f"no decoder layers found in {type(model).__name__}",
            got=f"children {_names(decoder)}",
            do="set target_modules to the names of its feed-forward modules",
        )
    found = {}
    for layer_name, layer in layers.items():
        child = _ffn_name(layer)
        if child is None:
            raise UserError(
                f"no feed-forward module in {prefix}{layer_name} ({type(layer).__name__})",
                got=f"children {_names(layer)}",
                allowed=f"one child named {', '.join(FFN_NAMES)}",
                do="set target_modules to the child that holds the feed-forward block, if there is one",
            )
        found[f"{prefix}{layer_name}.{child}"] = getattr(layer, child)
    return found


def _decoder_layers(decoder: nn.Module) -> dict[str, nn.Module]:
    layers = {n: m for n, m in decoder.named_modules() if n and isinstance(m, GradientCheckpointingLayer)}
    if layers:
        return layers
    lists = {n: m for n, m in decoder.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        return {}
    name, longest = max(lists.items(), key=lambda item: len(item[1]))
    return {f"{name}.{i}": layer for i, layer in enumerate(longest)}


def _ffn_name(layer: nn.Module) -> str | None:
    names = [name for name, _ in layer.named_children() if name in FFN_NAMES]
    if len(names) > 1 and PREFERRED_OF_TWO in names:
        return PREFERRED_OF_TWO
    return names[0] if len(names) == 1 else None


def _names(module: nn.Module) -> str:
    return ", ".join(name for name, _ in module.named_children()) or "none"


def backbone_activation(model_config: Mapping[str, object]) -> str:
    """The name, as in Transformers' ACT2FN, of the backbone's own FFN activation; "silu" where its config names none."""
    for key in ACTIVATION_KEYS:
        name = model_config.get(key)
        if isinstance(name, str) and name in ACT2FN:
            return name
    return FALLBACK_ACTIVATION


def activation_module(name: str) -> nn.Module:
    """The activation of that name, as Transformers knows it."""
    if name not in ACT2FN:
        raise UserError("activation", got=name, allowed=", ".join(sorted(ACT2FN)))
    module: nn.Module = ACT2FN[name]
    return module
