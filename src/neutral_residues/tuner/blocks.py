"""Finds the feed-forward and attention blocks of a pretrained decoder from its structure, not its
name, and its width, depth, vocabulary and activation.

Promise: every module named here takes the hidden states as its first argument and returns them in
the same width. A model in which no such module is found is refused with the children that were
found. The vision or audio part of a multimodal model is left alone: only the decoder is searched.

Recurrent models have layers of one mixer and no feed-forward block (Mamba): the mixer stands for
it. Where the mixers of some layers are feed-forward blocks (Nemotron-H), only those count.
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
# A layer with a sparse and a shared block sums them on the same input: one adapter serves both.
PREFERRED_OF_TWO = "shared_mlp"

ATTENTION_NAMES = ("self_attn", "self_attention", "attention", "attn", "linear_attn")
MIXER_NAMES = ("mixer", "mamba")

CACHE_NAMES = ("past_key_values", "cache_params", "state")
"""Arguments of decoders and their parts: what passes over earlier tokens left behind."""

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
    """The layers of the decoder: full module name -> module, in order; a UserError if none."""
    get_decoder: Callable[[], nn.Module | None] | None = getattr(model, "get_decoder", None)
    decoder = (get_decoder() if get_decoder else None) or model
    prefix = next((f"{n}." for n, module in model.named_modules() if module is decoder and n), "")
    layers = _decoder_layers(decoder)
    if not layers:
        what, got = f"no decoder layers found in {type(model).__name__}", _names(decoder)
        raise UserError(what, got=got, do="set target_modules to its feed-forward modules")
    return {f"{prefix}{name}": layer for name, layer in layers.items()}


def find_blocks(model: nn.Module, placement: Placement) -> dict[str, nn.Module]:
    """The feed-forward or the attention module of every layer of the decoder: full name -> module,
    in layer order; a UserError if a layer has none. For the former, where every layer has one mixer
    instead: those mixers that are feed-forward, or all if none is."""
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
    """Full name and module of the output head, a linear layer from hidden states to logits; None if
    there is none."""
    get_head: Callable[[], nn.Module | None] | None = getattr(model, "get_output_embeddings", None)
    head = get_head() if get_head else None
    head = getattr(head, "base_layer", head)  # of another adapter
    if not isinstance(head, nn.Linear):
        return None
    names = [name for name, module in model.named_modules() if module is head]
    return (names[0].removesuffix(".base_layer"), head) if names else None


def find_embeddings(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Full name of the input embeddings, and the decoder that they are a child of, if that takes a
    cache; else None."""
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
    """The one mixer of every layer, at any depth (Zamba has layers that hold another one): full
    name -> module; empty if not every layer has one."""
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
    """The argument in which a module is given what was kept of earlier tokens, if its outputs
    depend on them; also of one that adapters are beside."""
    forward = getattr(module, "base_layer", module).forward
    arguments = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in arguments), None)


def _names(module: nn.Module) -> str:
    return f"children {', '.join(name for name, _ in module.named_children()) or 'none'}"


def check_targets(targets: dict[str, nn.Module], *, width_in: int) -> None:
    """Raise a UserError unless each of these modules, by full name, can have an adapter parallel to
    it, on hidden states of width `width_in`."""
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
    """The config of the language part of `model`."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        allowed = "a Transformers model (with a PretrainedConfig)"
        raise UserError("model", got=type(model).__name__, allowed=allowed)
    return config.get_text_config(decoder=True)


def describe_backbone(model: nn.Module) -> dict[str, int]:
    """What a saved extension must find again in the backbone it is loaded on."""
    config, keys = text_config(model), ("hidden_size", "num_hidden_layers", "vocab_size")
    return {key: int(getattr(config, key)) for key in keys}


def check_same_backbone(saved: dict[str, int], backbone: dict[str, int]) -> None:
    """Raise a UserError unless `backbone` has all that `saved` says; an empty `saved` fits any."""
    for key, value in saved.items():
        if (got := backbone.get(key)) != value:
            what = f"this extension was made for another backbone: {key}"
            do = "load the backbone named in its adapter_config.json"
            raise UserError(what, got=got, allowed=str(value), do=do)


def undo_resizing(model: PreTrainedModel, saved: dict[str, int], num_new_tokens: int) -> None:
    """Take away, in place, the rows that `AutoPeftModel` gives a backbone whose extension is saved
    with a tokenizer of so many more tokens: the extension has its own."""
    own, found = saved.get("vocab_size"), describe_backbone(model)["vocab_size"]
    if own is not None and own < found <= own + num_new_tokens:
        model.resize_token_embeddings(own)


def count_backbone_weights(model: nn.Module) -> int:
    """Weights of the backbone, embeddings counted, adapters and PEFT's copies of modules not."""
    return sum(
        num_weights_in(parameter)
        for name, parameter in model.named_parameters()
        if f".{PREFIX}." not in name and "modules_to_save." not in name
    )


def num_weights_in(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for: 4-bit weights are packed, two in a byte."""
    packed = type(parameter).__name__ == "Params4bit"
    return parameter.numel() * (2 * parameter.element_size() if packed else 1)


def backbone_activation(model_config: Mapping[str, object]) -> str:
    """The name, as in Transformers' ACT2FN, of the backbone's own FFN activation; "silu" where the
    config names none, or one with weights (Apertus' xIELU), which `activation_module` refuses."""
    for key in ACTIVATION_KEYS:
        name = model_config.get(key)
        if isinstance(name, str) and name in ACT2FN:
            return name if _has_no_weights(ACT2FN[name]) else FALLBACK_ACTIVATION
    return FALLBACK_ACTIVATION


def activation_module(name: str) -> nn.Module:
    """The activation of that name, as Transformers knows it; a UserError if the name is unknown, or
    the activation has weights, which would be neither trained nor saved."""
    module: nn.Module | None = ACT2FN[name] if isinstance(name, str) and name in ACT2FN else None
    if module is None or not _has_no_weights(module):
        allowed = "one of Transformers', without weights"
        raise UserError("activation", got=name, allowed=allowed, do=nearest(str(name), ACT2FN))
    return module


def _has_no_weights(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None
