"""Saved adapters of any method that PEFT knows, read as files that somebody else may have written.

    config = adapter_config(folder)          checked: what it names and what its folder holds
    model = load_adapter(backbone, folder)   the backbone with it
    model = load_adapters(backbone, {"french": folder, "german": another})   with several

Nothing in an adapter is code, and nothing of it is looked for elsewhere: PEFT would ask the Hub for
weights that a folder lacks, and unpack a pickle. Its configuration is data: a size in it fills no
memory before the weights are there that have it.
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
"""What a saved configuration says of where it was made."""


def adapter_config(folder: Path) -> PeftConfig:
    """The configuration of the adapter in `folder`.

    Raises:
        UserError: if the folder holds no weights, or what is no file, or the configuration is
            damaged, names no backbone, or has settings that PEFT would ignore.
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
    except Exception as error:  # whatever wrong types lead to
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
    """The backbone's name on the Hub, or its folder: the same however that was written."""
    name = str(config.base_model_name_or_path)
    return os.path.realpath(name) if os.path.isdir(name) else name


def comparable(config: PeftConfig) -> dict[str, Any]:
    """The settings of an adapter, to be held against another's: without what says where it was
    made, and with names that a model found, a set, as the list that is saved."""
    return {
        name: sorted(value) if isinstance(value, set | list | tuple) else value
        for name, value in config.to_dict().items()
        if name not in ELSEWHERE
    }


def load_adapter(backbone: nn.Module, folder: Path) -> PeftModel:
    """The backbone with the adapter in `folder`; a UserError for one that is damaged, or was made
    for another backbone."""
    return load_adapters(backbone, {"default": folder})


def load_adapters(backbone: nn.Module, folders: Mapping[str, Path]) -> PeftModel:
    """The backbone with several adapters by their names, all of them active; errors as above, and
    where they are not all for one backbone."""
    model: Any = backbone
    _check_one_backbone(list(folders.values()))
    for name, folder in folders.items():
        model = add_adapter(model, folder, name)
    if len(folders) > 1:
        model.base_model.set_adapter(list(folders), inference_mode=True)
    return model


def _check_one_backbone(folders: list[Path]) -> None:
    """Sizes, which loading compares, do not tell one backbone from another."""
    first, *others = ((folder, backbone_place(adapter_config(folder))) for folder in folders)
    for folder, place in others:
        if place != first[1]:
            what = f"{folder} extends another backbone than {first[0]}"
            do = "compose extensions of one backbone"
            raise UserError(what, got=place, allowed=first[1], do=do)


def add_adapter(model: Any, folder: Path, name: str) -> PeftModel:
    """The model, which may have others, with the adapter in `folder`; errors as above."""
    adapter_config(folder)
    with _as_user_errors(folder):
        _check_types(folder / WEIGHTS)
        # Nothing is allocated before tensors are there to fill it; beside weights in fewer bits
        # PEFT would then leave the adapter in theirs.
        is_float32 = next(model.parameters()).dtype == torch.float32
        options: dict[str, Any] = {"adapter_name": name, "low_cpu_mem_usage": is_float32}
        if not isinstance(model, PeftModel):
            return PeftModel.from_pretrained(model, str(folder), **options)
        model.load_adapter(str(folder), **options)
        return model


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of the adapter in `folder` by name; errors as of `load_adapter`."""
    with _as_user_errors(folder):
        _check_types(folder / WEIGHTS)
        return load_file(folder / WEIGHTS)


@contextmanager
def _as_user_errors(folder: Path) -> Iterator[None]:
    """Safetensors and PEFT raise types of their own for damaged files."""
    try:
        with warnings.catch_warnings(record=True) as said:  # what fails, fails in one line
            yield
    except UserError:
        raise
    except Exception as error:
        what, do = f"cannot load the adapter in {folder}", "save or fetch it again"
        raise UserError(what, got=first_line(error), do=do) from error
    for it in said:
        warnings.warn_explicit(it.message, it.category, it.filename, it.lineno)


def _check_types(weights: Path) -> None:
    """Raise a UserError unless all tensors are numbers that can be trained: others would be taken
    as they are, and break the first pass."""
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            kind = file.get_slice(name).get_dtype()
            if kind not in TYPES:
                what, allowed = f"type of {name} in {weights}", ", ".join(TYPES)
                raise UserError(what, got=kind, allowed=allowed, do="save or fetch it again")
