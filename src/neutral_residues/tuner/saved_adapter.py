"""Loads saved adapters of any PEFT method from folders that may not be trusted.

    config = adapter_config(folder)          configuration, after checks of it and its folder
    model = load_adapter(backbone, folder)   PEFT model with that adapter
    model = load_adapters(backbone, {"french": folder, "german": another})   with several

No code of an adapter is run and nothing is downloaded: PEFT alone would look for missing weights on
the Hub, and load a pickle. Sizes in the configuration are not trusted either: no memory is
allocated for them before weights of that size are read.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from neutral_residues.errors import UserError, first_line
from neutral_residues.files import check_holds_files, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TYPES = ("F64", "F32", "BF16", "F16")
ELSEWHERE = {"base_model_name_or_path", "revision", "inference_mode", "peft_version"}
"""Settings of a saved configuration that say where it was made, not what it is."""


def adapter_config(folder: Path) -> PeftConfig:
    """The configuration of the adapter in `folder`.

    Raises:
        UserError: if the folder has no weights, or holds anything but files, or the configuration
            is damaged, names no backbone, or has settings that PEFT would ignore.
    """
    check_holds_files(folder)
    file = folder / CONFIG
    read_json(file, "adapter configuration")
    if not (folder / WEIGHTS).is_file():
        what, do = f"no {WEIGHTS} in {folder}", "save or fetch the extension again"
        raise UserError(what, got="no weights, or old ones that are a pickle", do=do)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Unexpected keyword arguments")
            config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # values of wrong types can raise anything
        raise UserError(f"cannot read {file}", got=first_line(error)) from error
    name = config.base_model_name_or_path
    if not isinstance(name, str) or not name:
        raise UserError(
            f"base_model_name_or_path in {file}",
            got=str(name),
            allowed="a folder or a name on the Hub",
            do="set it to the backbone that was extended",
        )
    return config


def backbone_place(config: PeftConfig) -> str:
    """The backbone's name on the Hub or its folder, as an absolute path without links, so that it
    can be compared."""
    name = str(config.base_model_name_or_path)
    return os.path.realpath(name) if os.path.isdir(name) else name


def comparable(config: PeftConfig) -> dict[str, Any]:
    """The settings of an adapter as a dictionary that can be compared with another's: without
    `ELSEWHERE`, and with sets as sorted lists, as they are saved."""
    return {
        name: sorted(value) if isinstance(value, set | list | tuple) else value
        for name, value in config.to_dict().items()
        if name not in ELSEWHERE
    }


def load_adapter(backbone: nn.Module, folder: Path) -> PeftModel:
    """The backbone with the adapter in `folder`, named "default". Raises a UserError if it is
    damaged or does not fit the backbone."""
    return load_adapters(backbone, {"default": folder})


def load_adapters(backbone: nn.Module, folders: Mapping[str, Path]) -> PeftModel:
    """The backbone with several adapters (name -> folder), all active. Raises a UserError as
    `load_adapter`, and if they were not made for the same backbone."""
    model: Any = backbone
    _check_one_backbone(list(folders.values()))
    for name, folder in folders.items():
        model = add_adapter(model, folder, name)
    if len(folders) > 1:
        model.base_model.set_adapter(list(folders), inference_mode=True)
    return model


def _check_one_backbone(folders: list[Path]) -> None:
    """Raise a UserError unless all adapters name the same backbone: sizes, which are compared when
    they are loaded, may agree by chance."""
    first, *others = ((folder, backbone_place(adapter_config(folder))) for folder in folders)
    for folder, place in others:
        if place != first[1]:
            what = f"{folder} extends another backbone than {first[0]}"
            do = "compose extensions of one backbone"
            raise UserError(what, got=place, allowed=first[1], do=do)


def add_adapter(model: Any, folder: Path, name: str) -> PeftModel:
    """`model`, a backbone or a model with other adapters, with the adapter in `folder` as `name`.
    Raises a UserError as `load_adapter`."""
    adapter_config(folder)
    with _as_user_errors(folder):
        _check_types(folder / WEIGHTS)
        # With this option nothing is allocated before tensors are read. Only for float32: next to
        # weights in 16 bits, PEFT would then leave the adapter in 16 bits too.
        is_float32 = next(model.parameters()).dtype == torch.float32
        options: dict[str, Any] = {"adapter_name": name, "low_cpu_mem_usage": is_float32}
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(folder), **options)
        model.load_adapter(str(folder), **options)
        return model


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Name -> tensor of the adapter in `folder`. Raises a UserError as `load_adapter`."""
    with _as_user_errors(folder):
        _check_types(folder / WEIGHTS)
        return load_file(folder / WEIGHTS)


@contextmanager
def _as_user_errors(folder: Path) -> Iterator[None]:
    """Turns errors of safetensors and PEFT about damaged files into a UserError."""
    try:
        with warnings.catch_warnings(record=True) as said:  # none is shown before an error
            yield
    except UserError:
        raise
    except Exception as error:
        what, do = f"cannot load the adapter in {folder}", "save or fetch it again"
        raise UserError(what, got=first_line(error), do=do) from error
    for it in said:
        warnings.warn_explicit(it.message, it.category, it.filename, it.lineno)


def _check_types(weights: Path) -> None:
    """Raise a UserError unless all tensors are of floating-point types: PEFT would load others too,
    and the first forward pass would fail."""
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - `file` is not a dictionary
            kind = file.get_slice(name).get_dtype()
            if kind not in TYPES:
                what, allowed = f"type of {name} in {weights}", ", ".join(TYPES)
                raise UserError(what, got=kind, allowed=allowed, do="save or fetch it again")
