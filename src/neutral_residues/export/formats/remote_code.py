"""The format `transformers`: a model folder with its own modelling code, loaded with
`trust_remote_code=True`.

The code is one file, `modeling.py.template`, filled in with the names of the backbone's classes in
Transformers; it does not need this package. Its `model_type` and `architectures` are new names, so
that a program that knows only the backbone refuses the folder instead of loading the backbone
without the extension.

The code follows these rules of vLLM's Transformers backend: blocks and adapters are separate
modules, no forward is a closure, and the projection inside the activation comes first. Three parts
break other rules. A residue on the output head is outside the decoder, and that backend has its own
head. A gate that reads tokens needs hooks around the decoder's forward pass and a layer in the
key-value cache for its codes (`tuner/reader.py`), which that backend has not. New tokens
(`tuner/new_tokens.py`) need hooks on embeddings and head. A folder with one of these declares
itself incompatible (`is_backend_compatible`), so that it is refused there instead of losing a part.
vLLM itself was never run.

The head is still a linear layer with its name and weight, so tied embeddings stay tied, and soft
caps and scales are applied after the residue. `serve.py` in the folder starts Transformers'
OpenAI-compatible server, whose own command finds only classes of Transformers.
"""

import importlib.util
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neutral_residues.export.formats.saving import save_model
from neutral_residues.export.parts import Adapter, Parts
from neutral_residues.files import write_text
from neutral_residues.tuner.blocks import cache_argument
from neutral_residues.tuner.neutral import GatedAdapter
from neutral_residues.tuner.new_tokens import SMALL_GATE, NewTokens
from neutral_residues.tuner.reader import CODE, HIDDEN, WINDOW, TokenReader

CODE_FILE = "modeling_neutral_residues.py"
CLASS_PREFIX = "NeutralResidues"
_TEMPLATE = Template((Path(__file__).parent / "modeling.py.template").read_text(encoding="utf-8"))
_SERVE = Template((Path(__file__).parent / "serve.py.template").read_text(encoding="utf-8"))


def remote_code_refusal(parts: Parts) -> str | None:
    """The reason why this format cannot hold the extension, or None if it can."""
    backbone, prefix = parts.backbone, parts.backbone.base_model_prefix
    kind = type(backbone).__name__
    if not type(backbone).__module__.startswith("transformers.models."):
        return f"the backbone {kind} has code of its own, which the export would need too"
    if backbone.base_model is backbone:
        return f"{kind} has no decoder apart from its head"
    for block in (block for adapter in parts.adapters for block in adapter.by_block):
        if not block.startswith(f"{prefix}."):
            return f"an adapter is parallel to {block}, outside the decoder {prefix!r}"
    if parts.needs_embeddings and not parts.embeddings_name.startswith(f"{prefix}."):
        return f"a gate or new tokens need {parts.embeddings_name}, outside the decoder {prefix!r}"
    if parts.has_reader and _cache_argument(parts) == "state":
        return f"a gate reads the text, and the state of {kind} has no place for what it has read"
    return None


def write_remote_code(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write code, configuration and weights into `folder`."""
    backbone, code = parts.backbone, folder / CODE_FILE
    write_text(code, _code(parts))
    module, names = _imported(code), _class_names(backbone)
    # Read back from the file: `to_dict` gives infinities in their JSON form.
    backbone.config.save_pretrained(folder)
    values, _ = type(backbone.config).get_config_dict(folder)
    for key in ("model_type", "architectures"):
        values.pop(key, None)
    config = getattr(module, names["Config"]).from_dict(values)
    config.strongest_over = parts.strongest_over
    config.residues = [_settings(adapter, backbone) for adapter in parts.adapters]
    config.auto_map = {
        "AutoConfig": f"{code.stem}.{names['Config']}",
        "AutoModel": f"{code.stem}.{names['Decoder']}",
        "AutoModelForCausalLM": f"{code.stem}.{names['Head']}",
    }
    write_text(folder / "serve.py", _SERVE.substitute(names, module=code.stem))
    head = getattr(module, names["Head"])
    save_model(head, config, _weights(parts), folder, dtype=dtype, like=backbone)


def _cache_argument(parts: Parts) -> str | None:
    """Name of the argument by which the decoder takes its cache (see `blocks.cache_argument`)."""
    decoder = parts.embeddings_name.rpartition(".")[0]
    return cache_argument(parts.backbone.get_submodule(decoder))


def _class_names(backbone: PreTrainedModel) -> dict[str, str]:
    kinds = {"Config": backbone.config, "Decoder": backbone.base_model, "Head": backbone}
    return {role: f"{CLASS_PREFIX}{type(kind).__name__}" for role, kind in kinds.items()}


def _code(parts: Parts) -> str:
    backbone = parts.backbone
    decoder, head, config = type(backbone.base_model), type(backbone), type(backbone.config)
    blocks = {name.rpartition(".")[2] for adapter in parts.adapters for name in adapter.by_block}
    return _TEMPLATE.substitute(
        _class_names(backbone),
        version=version("neutral-residues"),
        config=config.__name__,
        config_module=config.__module__,
        decoder=decoder.__name__,
        head=head.__name__,
        model_module=head.__module__,
        names=", ".join(sorted({decoder.__name__, head.__name__})),
        attribute=backbone.base_model_prefix,
        model_type=f"neutral_residues_{parts.model_type}",
        block=min(blocks),
        head_name=parts.head_name if parts.has_head else "",
        embeddings_name=_inside(parts.embeddings_name, backbone) if parts.needs_embeddings else "",
        cache=_cache_argument(parts) if parts.needs_embeddings else "",
        small_gate=SMALL_GATE,
    )


def _imported(path: Path) -> ModuleType:
    """Import the module in file `path`. It is registered under a name, which Python needs to
    resolve the annotations of its classes."""
    name = f"_exported_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = write_bytecode
    return module


def _inside(name: str, backbone: PreTrainedModel) -> str:
    """A module's full name, without the prefix of the decoder."""
    return name.removeprefix(f"{backbone.base_model_prefix}.")


def _settings(adapter: Adapter, backbone: PreTrainedModel) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "width_in": adapter.width_in,
        "width": adapter.width,
        "activation": adapter.activation,
        "block_gate": adapter.kind,
        "bias": adapter.has_bias,
        "blocks": [_inside(block, backbone) for block in adapter.by_block],
        "head_rank": adapter.head.down.out_features if adapter.head else 0,
        "reader": _reader_settings(adapter.reader) if adapter.reader else None,
        "new_tokens": _token_settings(adapter.tokens) if adapter.tokens else None,
        "thresholds": _threshold_settings(adapter, backbone) if adapter.thresholds else None,
    }


def _threshold_settings(adapter: Adapter, backbone: PreTrainedModel) -> dict[str, Any]:
    """The adapter's thresholds by block name, "head" or "reader"."""
    thresholds = adapter.thresholds
    assert thresholds is not None
    if adapter.reader is not None:
        (value,) = thresholds.values.values()
        values = {"reader": value}
    else:
        values = {
            _inside(name, backbone) if name in adapter.by_block else "head": value
            for name, value in thresholds.values.items()
        }
    return {"form": thresholds.form, "values": values, "over": thresholds.over}


def _reader_settings(reader: TokenReader) -> dict[str, Any]:
    return {
        "kind": reader.kind,
        "width_in": reader.rows.in_features,
        "hidden": HIDDEN,
        "code": CODE,
        "num_tokens": WINDOW,
    }


def _token_settings(tokens: NewTokens) -> dict[str, Any]:
    return {
        "number": tokens.num_tokens,
        "rank": tokens.codes.embedding_dim,
        "embedding_width": tokens.into.out_features,
        "hidden_width": tokens.out_of.in_features,
    }


def _weights(parts: Parts) -> dict[str, Tensor]:
    """Weights of the exported model: those of the backbone, of the adapters at each block and at
    the head and of their readers, each numbered in their order, and of new tokens."""
    by_block: defaultdict[str, list[GatedAdapter]] = defaultdict(list)
    for adapter in parts.adapters:
        for block, module in adapter.by_block.items():
            by_block[block].append(module)
    weights = {}
    for key, tensor in parts.backbone.state_dict().items():
        for block in by_block:
            if key.startswith(f"{block}."):
                key = f"{block}.block{key.removeprefix(block)}"
        weights[key] = tensor
    for block, modules in by_block.items():
        for number, module in enumerate(modules):
            for name, parameter in module.named_parameters():
                # In the exported module, gate and gated linear unit are separate modules.
                path = name if name.startswith("block_gate.") else f"adapter.{name}"
                weights[f"{block}.residues.{number}.{path}"] = parameter.detach()
    heads = [adapter.head for adapter in parts.adapters if adapter.head is not None]
    for number, head in enumerate(heads):
        for name, parameter in head.named_parameters():
            weights[f"{parts.head_name}.residues.{number}.{name}"] = parameter.detach()
    prefix = parts.backbone.base_model_prefix
    readers = [adapter.reader for adapter in parts.adapters if adapter.reader is not None]
    for number, reader in enumerate(readers):
        for name, parameter in reader.named_parameters():
            weights[f"{prefix}.token_readers.{number}.{name}"] = parameter.detach()
    for tokens in (adapter.tokens for adapter in parts.adapters if adapter.tokens is not None):
        for name, parameter in tokens.named_parameters():
            weights[f"{prefix}.new_tokens.{name}"] = parameter.detach()
    return weights
