"""The format `transformers`: a model folder with its own modelling code, loaded with
`trust_remote_code=True`.

The code is one file, `modeling.py.template` filled in with the names of the backbone's classes in
Transformers; it does not need this package. Its `model_type` and `architectures` are new, so that a
program that knows only the backbone refuses the folder instead of loading the backbone alone. It is
written to the rules of vLLM's Transformers backend: changes sit in the decoder, stock blocks and
adapters are separate modules, no forward is a closure, and the projection inside the activation
comes first. `serve.py` beside it starts the OpenAI-compatible server of Transformers, whose own
command finds stock classes only.
"""

import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neutral_residues.export.parts import Adapter, Parts
from neutral_residues.files import write_text

CODE_FILE = "modeling_neutral_residues.py"
CLASS_PREFIX = "NeutralResidues"
_TEMPLATE = Template((Path(__file__).parent / "modeling.py.template").read_text(encoding="utf-8"))
_SERVE = Template((Path(__file__).parent / "serve.py.template").read_text(encoding="utf-8"))


def remote_code_refusal(parts: Parts) -> str | None:
    """Why this format cannot hold the extension, or None."""
    backbone = parts.backbone
    if not type(backbone).__module__.startswith("transformers.models."):
        return (
            f"the backbone {type(backbone).__name__} comes with code of its own, which would have"
            " to come along"
        )
    prefix = backbone.base_model_prefix
    if backbone.base_model is backbone:
        return f"{type(backbone).__name__} has no decoder apart from its head"
    outside = [p for a in parts.adapters for p in a.beside if not p.startswith(f"{prefix}.")]
    return (
        f"an adapter runs beside {outside[0]}, outside the decoder {prefix!r}" if outside else None
    )


def write_remote_code(parts: Parts, folder: Path, dtype: torch.dtype) -> None:
    """Write code, configuration and weights into `folder`."""
    backbone = parts.backbone
    code = folder / CODE_FILE
    write_text(code, _code(parts))
    module = _imported(code)
    names = _class_names(backbone)
    backbone.config.save_pretrained(
        folder
    )  # through the file: a dict of it would hold infinities in their JSON form
    values, _ = type(backbone.config).get_config_dict(folder)
    config = getattr(module, names["Config"]).from_dict(
        {key: value for key, value in values.items() if key not in ("model_type", "architectures")}
    )
    config.residues = [_settings(adapter, backbone.base_model_prefix) for adapter in parts.adapters]
    stem = code.stem
    config.auto_map = {
        "AutoConfig": f"{stem}.{names['Config']}",
        "AutoModel": f"{stem}.{names['Decoder']}",
        "AutoModelForCausalLM": f"{stem}.{names['Head']}",
    }
    write_text(folder / "serve.py", _SERVE.substitute(names, module=stem))
    save_filled(
        getattr(module, names["Head"]), config, _weights(parts), folder, dtype=dtype, like=backbone
    )


def save_filled(
    kind: type[PreTrainedModel],
    config: Any,
    weights: dict[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    like: PreTrainedModel,
) -> None:
    """Save a model of that class with exactly these weights, and the generation settings of `like`;
    nothing is copied on the way but what `dtype` changes."""
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.to(dtype)
    model.config.dtype = dtype
    model.generation_config = like.generation_config
    model.save_pretrained(folder)


def _class_names(backbone: PreTrainedModel) -> dict[str, str]:
    kinds = {
        "Config": type(backbone.config),
        "Decoder": type(backbone.base_model),
        "Head": type(backbone),
    }
    return {role: f"{CLASS_PREFIX}{kind.__name__}" for role, kind in kinds.items()}


def _code(parts: Parts) -> str:
    backbone = parts.backbone
    decoder, head, config = type(backbone.base_model), type(backbone), type(backbone.config)
    blocks = {place.rpartition(".")[2] for adapter in parts.adapters for place in adapter.beside}
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
    )


def _imported(path: Path) -> ModuleType:
    """The module in that file, under a name of its own; Python looks its classes' annotations up by
    that name."""
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


def _settings(adapter: Adapter, prefix: str) -> dict[str, Any]:
    first = next(iter(adapter.beside.values()))
    return {
        "name": adapter.name,
        "width_in": first.gate.in_features,
        "width": adapter.width,
        "activation": adapter.activation,
        "block_gate": adapter.block_gate,
        "bias": adapter.has_bias,
        "beside": [place.removeprefix(f"{prefix}.") for place in adapter.beside],
    }


def _weights(parts: Parts) -> dict[str, Tensor]:
    places = {place for adapter in parts.adapters for place in adapter.beside}
    weights = {}
    for key, tensor in parts.backbone.state_dict().items():
        place = next((place for place in places if key.startswith(f"{place}.")), None)
        weights[key if place is None else f"{place}.block{key.removeprefix(place)}"] = tensor
    num_there = dict.fromkeys(places, 0)
    for adapter in parts.adapters:
        for place, gated_adapter in adapter.beside.items():
            for name, parameter in gated_adapter.named_parameters():
                # The exported module keeps the gate apart from the projections.
                role = name if name.startswith("block_gate.") else f"adapter.{name}"
                weights[f"{place}.residues.{num_there[place]}.{role}"] = parameter.detach()
            num_there[place] += 1
    return weights
