"""Finds the parts of a pretrained decoder (layers, feed-forward and attention blocks, embeddings,
head) from its structure, not its name, and its width, depth, vocabulary and activation.

Promise: every block found here takes the hidden states as its first argument and returns them in
the same width. A model without such a block is refused, with the names of the modules that it has
instead. In a multimodal model only the text decoder is searched.

Layers of recurrent models (Mamba) have a mixer and no feed-forward block: the mixer takes its
place. If the mixers of some layers are feed-forward blocks (Nemotron-H), only these are used.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from neutral_residues.config.choices import Placement
from neutral_residues.errors import UserError, nearest
from neutral_residues.tuner.neutral import PREFIX

FFN_NAMES = ("mlp", "feed_forward", "ffn", "mlp_block", "block_sparse_moe", "shared_mlp")
# A layer with a sparse and a shared block adds their outputs for the same input: an adapter at one
# of them is enough.
PREFERRED_OF_TWO = "shared_mlp"

ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn", "linear_attn")
MIXER_NAMES = ("mixer", "mamba")

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""Names of the argument for the cache, in decoders and their modules."""

BLOCK_NAMES: dict[Placement, tuple[str, ...]] = {"ffn": FFN_NAMES, "attention": ATTENTION_NAMES}
BLOCK_TITLES: dict[Placement, str] = {"ffn": "feed-forward", "attention": "attention"}

# fmt: off
ACTIVATION_KEYS = (
    "hidden_activation", "hidden_act", "activation_function", "mlp_hidden_act", "activation",
    "hidden_activation_fn",
)
# fmt: on
FALLBACK_ACTIVATION = "silu"


def find_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of the decoder in order: full module name -> module; a UserError if there are
    none."""
    get_decoder: Callable[[], nn.Module | None] | None = getattr(model, "get_decoder", None)
    decoder = (get_decoder() if get_decoder else None) or model
    prefix = next((f"{n}." for n, module in model.named_modules() if module is decoder and n), "")
    layers = _decoder_layers(decoder)
    if not layers:
        what, got = f"no decoder layers found in {type(model).__name__}", _names(decoder)
        raise UserError(what, got=got, do="set target_modules to its feed-forward modules")
    return {f"{prefix}{name}": layer for name, layer in layers.items()}


def find_blocks(model: nn.Module, placement: Placement) -> dict[str, nn.Module]:
    """The feed-forward or attention block of every layer of the decoder, in order: full name ->
    module. If layers have mixers instead of feed-forward blocks: the mixers that are feed-forward,
    or all mixers if none is.

    Raises:
        UserError: if a layer has no such block.
    """
    layers = find_layers(model)
    children = {name: _block_name(it, BLOCK_NAMES[placement]) for name, it in layers.items()}
    if placement == "ffn" and not any(children.values()) and (mixers := _mixers(layers)):
        return {n: mixer for n, mixer in mixers.items() if not cache_argument(mixer)} or mixers
    found = {}
    for layer_name, child in children.items():
        layer = layers[layer_name]
        if child is None:
            title, names = BLOCK_TITLES[placement], ", ".join(BLOCK_NAMES[placement])
            what = f"no {title} module in {layer_name} ({type(layer).__name__})"
            do = f"set target_modules to the child that holds the {title} block, if there is one"
            raise UserError(what, got=_names(layer), allowed=f"one child named {names}", do=do)
        found[f"{layer_name}.{child}"] = getattr(layer, child)
    return found


def find_head(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """Full name and module of the output head, the linear layer from hidden states to logits; None
    if the model has none."""
    get_head: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head else None
    head = getattr(head, "base_layer", head)  # already wrapped, by another adapter
    if not isinstance(head, nn.Linear):
        return None
    names = [name for name, module in model.named_modules() if module is head]
    return (names[0].removesuffix(".base_layer"), head) if names else None


def find_embeddings(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Full name of the input embeddings, and the decoder that contains them; None if there are no
    embeddings, or the decoder takes no cache."""
    get_embeddings: Callable[[], nn.Module] | None = getattr(model, "get_input_embeddings", None)
    embeddings = get_embeddings() if get_embeddings else None
    embeddings = getattr(embeddings, "base_layer", embeddings)
    names = [name for name, module in model.named_modules() if module is embeddings]
    if not names:
        return None
    name = names[0].removesuffix(".base_layer")
    decoder = model.get_submodule(name.rpartition(".")[0])
    return (name, decoder) if cache_argument(decoder) else None


def _decoder_layers(decoder: nn.Module) -> dict[str, nn.Module]:
    modules = dict(decoder.named_modules())
    layers = {n: m for n, m in modules.items() if n and isinstance(m, GradientCheckpointingLayer)}
    if layers:
        inner = {n for n in layers if any(n.startswith(f"{other}.") for other in layers)}
        return {name: layer for name, layer in layers.items() if name not in inner}
    lists = {n: m for n, m in modules.items() if isinstance(m, nn.ModuleList) and len(m)}
    if not lists:
        return {}
    name, longest = max(lists.items(), key=lambda item: len(item[1]))
    return {f"{name}.{i}": layer for i, layer in enumerate(longest)}


def _block_name(layer: nn.Module, known: tuple[str, ...]) -> str | None:
    names = [name for name, _ in layer.named_children() if name in known]
    if len(names) > 1 and PREFERRED_OF_TWO in names:
        return PREFERRED_OF_TWO
    return names[0] if len(names) == 1 else None


def _mixers(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The mixer of every layer, also of a layer inside it (as Zamba has): full name -> module;
    empty unless every layer has exactly one."""
    found = {
        layer_name: [name for name, _ in layer.named_modules() if _last(name) in MIXER_NAMES]
        for layer_name, layer in layers.items()
    }
    if any(len(names) != 1 for names in found.values()):
        return {}
    return {f"{n}.{name}": layers[n].get_submodule(name) for n, (name,) in found.items()}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def cache_argument(module: Any) -> str | None:
    """Name of the argument by which a module, wrapped or not, takes the cache of earlier tokens;
    None if it takes none."""
    forward = getattr(module, "base_layer", module).forward
    arguments = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in arguments), None)


def _names(module: nn.Module) -> str:
    return f"children {', '.join(name for name, _ in module.named_children()) or 'none'}"


def check_targets(targets: dict[str, nn.Module], *, width_in: int) -> None:
    """Raise a UserError unless each of these modules (full name -> module) can have an adapter
    parallel to it, for hidden states of width `width_in`."""
    do = "leave target_modules out to have them found, or name the feed-forward modules"
    if not targets:
        raise UserError("target_modules match no module", do=do)
    for name, module in targets.items():
        outer = next((other for other in targets if name.startswith(f"{other}.")), None)
        if outer is not None:
            what = "target_modules match a module inside another"
            raise UserError(what, got=f"{name} inside {outer}", do=do)
        is_linear = isinstance(module, nn.Linear)
        if is_linear and {module.in_features, module.out_features} != {width_in}:
            what = f"target_modules match {name}, which does not map width {width_in} to itself"
            raise UserError(what, do=do)


def text_config(model: nn.Module) -> PretrainedConfig:
    """The configuration of the text decoder of `model`; a UserError if it is not a Transformers
    model."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        allowed = "a Transformers model (with a PretrainedConfig)"
        raise UserError("model", got=type(model).__name__, allowed=allowed)
    return config.get_text_config(decoder=True)


def describe_backbone(model: nn.Module) -> dict[str, int]:
    """Width, depth and vocabulary size of the backbone, which an extension saves and checks when it
    is loaded."""
    config, keys = text_config(model), ("hidden_size", "num_hidden_layers", "vocab_size")
    return {key: int(getattr(config, key)) for key in keys}


def check_same_backbone(saved: dict[str, int], backbone: dict[str, int]) -> None:
    """Raise a UserError if a value of `saved` differs in `backbone` (both from
    `describe_backbone`)."""
    for key, value in saved.items():
        if (got := backbone.get(key)) != value:
            what = f"this extension was made for another backbone: {key}"
            do = "load the backbone named in its adapter_config.json"
            raise UserError(what, got=got, allowed=str(value), do=do)


def undo_resizing(model: PreTrainedModel, saved: dict[str, int], num_new_tokens: int) -> None:
    """Remove, in place, the embedding rows that `AutoPeftModel` adds to the backbone if the saved
    tokenizer has more tokens: rows of new tokens are in the extension.

    Args:
        saved: the backbone's description in the extension's configuration.
        num_new_tokens: number of new tokens of the extension.
    """
    own, found = saved.get("vocab_size"), describe_backbone(model)["vocab_size"]
    if own is not None and own < found <= own + num_new_tokens:
        model.resize_token_embeddings(own)


def count_backbone_weights(model: nn.Module) -> int:
    """Number of weights of the backbone, with embeddings, but without adapters and PEFT's copies of
    modules (`modules_to_save`)."""
    return sum(
        num_weights_in(parameter)
        for name, parameter in model.named_parameters()
        if f".{PREFIX}." not in name and "modules_to_save." not in name
    )


def num_weights_in(parameter: nn.Parameter) -> int:
    """Number of weights in a parameter; 4-bit weights are packed, two in a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def backbone_activation(model_config: Mapping[str, object]) -> str:
    """Name of the activation in the backbone's FFN, as in Transformers' ACT2FN; "silu" if the
    configuration names none, or one with weights (Apertus' xIELU), which an adapter cannot have."""
    for key in ACTIVATION_KEYS:
        name = model_config.get(key)
        if isinstance(name, str) and name in ACT2FN:
            return name if _has_no_weights(ACT2FN[name]) else FALLBACK_ACTIVATION
    return FALLBACK_ACTIVATION


def activation_module(name: str) -> nn.Module:
    """The activation called `name` in Transformers' ACT2FN; a UserError if there is none, or it has
    weights, which would be neither trained nor saved."""
    module: nn.Module | None = ACT2FN[name] if isinstance(name, str) and name in ACT2FN else None
    if module is None or not _has_no_weights(module):
        allowed = "one of Transformers', without weights"
        raise UserError("activation", got=name, allowed=allowed, do=nearest(str(name), ACT2FN))
    return module


def _has_no_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None
