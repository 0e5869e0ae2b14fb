"""Saved adapters of any method that PEFT knows, read as files that somebody else may have written.

    config = adapter_config(folder)          checked: what it names and what its folder holds
    model = load_adapter(backbone, folder)   the backbone with it

Nothing in an adapter is code, and nothing of it is looked for elsewhere: PEFT would ask the Hub for
weights that a folder lacks, and unpack a pickle. Its configuration is data: a size in it fills no
memory before the weights are there that have it.
"""

import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from torch import nn

from neutral_residues.errors import UserError, first_line
from neutral_residues.files import check_holds_files, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TYPES = ("F64", "F32", "BF16", "F16")


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


def load_adapter(backbone: nn.Module, folder: Path) -> PeftModel:
    """The backbone with the adapter in `folder`; a UserError for one that is damaged, or was made
    for another backbone."""
    adapter_config(folder)
    try:
        _check_types(folder / WEIGHTS)
        # Nothing is allocated before tensors are there to fill it; beside weights in fewer bits
        # PEFT would then leave the adapter in theirs.
        is_float32 = next(backbone.parameters()).dtype == torch.float32
        with warnings.catch_warnings(record=True) as said:  # what fails, fails in one line
            model = PeftModel.from_pretrained(backbone, str(folder), low_cpu_mem_usage=is_float32)
    except UserError:
        raise
    except Exception as error:  # safetensors and PEFT raise types of their own for damaged files
        what, do = f"cannot load the adapter in {folder}", "save or fetch it again"
        raise UserError(what, got=first_line(error), do=do) from error
    for it in said:
        warnings.warn_explicit(it.message, it.category, it.filename, it.lineno)
    return model


def _check_types(weights: Path) -> None:
    """Raise a UserError unless all tensors are numbers that can be trained: others would be taken
    as they are, and break the first pass."""
    with safe_open(weights, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            kind = file.get_slice(name).get_dtype()
            if kind not in TYPES:
                what, allowed = f"type of {name} in {weights}", ", ".join(TYPES)
                raise UserError(what, got=kind, allowed=allowed, do="save or fetch it again")
