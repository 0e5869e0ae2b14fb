"""A saved extension with its backbone, loaded to be measured or asked, whatever the method was."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.backbone import (
    frozen_precision,
    load_backbone,
    load_tokenizer,
    on_device,
    pick_device,
)
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.errors import UserError, first_line
from neutral_residues.results.run_folder import RunFolder


@dataclass(frozen=True)
class Saved:
    """An extended model.

    Attributes:
        model: the extended model, in evaluation mode.
        tokenizer: its tokenizer.
        reference: the backbone, where it is not inside `model` (full fine-tuning).
        config: the run that made it, where the folder is a run's output.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    reference: nn.Module | None
    config: RunConfig | None


def load_saved(folder: Path, *, dtype: torch.dtype = torch.float32) -> Saved:
    """Load the output folder of a run, or an extension folder.

    Raises:
        UserError: if it is neither, is not finished, is cut short, or belongs to another backbone.
    """
    if not folder.is_dir():
        raise UserError(
            f"no such folder: {folder}",
            do="give the output folder of a run, or an extension folder",
        )
    run = RunFolder(folder)
    config = load_run(run.config) if run.config.is_file() else None
    extension = run.extension if config else folder
    if (extension / "adapter_config.json").is_file():
        model, name = _load_adapter(extension, config, dtype)
        reference = None
    elif config is not None and (extension / "config.json").is_file():
        model, name = load_backbone(str(extension), dtype=dtype).to(pick_device()), str(extension)
        reference = _backbone(config.model, config, dtype)
    elif config is not None:
        raise UserError(
            f"the run in {folder} has no extension yet",
            do=f"finish it: neutral extend {run.config}",
        )
    else:
        raise UserError(
            f"{folder} is no extension",
            allowed="a folder with adapter_config.json or run.yaml",
            do="check the path",
        )
    tokenizer = load_tokenizer(
        str(extension) if (extension / "tokenizer_config.json").is_file() else name
    )
    return Saved(model.eval(), tokenizer, reference, config)


def _load_adapter(
    extension: Path, config: RunConfig | None, dtype: torch.dtype
) -> tuple[nn.Module, str]:
    try:
        name = PeftConfig.from_pretrained(str(extension)).base_model_name_or_path
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"cannot read {extension}/adapter_config.json", got=first_line(error)
        ) from error
    backbone = _backbone(name, config, dtype)
    try:
        return PeftModel.from_pretrained(backbone, str(extension)), name
    except UserError:
        raise
    except Exception as error:  # safetensors and PEFT raise types of their own for damaged files
        raise UserError(
            f"cannot load the adapter in {extension}",
            got=first_line(error),
            do="save or fetch it again",
        ) from error


def _backbone(name: str, config: RunConfig | None, dtype: torch.dtype) -> nn.Module:
    """In `dtype`, but quantised where it was in training: another backbone would be measured
    otherwise."""
    quantised = frozen_precision(config.training, pick_device()).quantised if config else None
    model = load_backbone(
        name,
        revision=config.revision if config else None,
        trust_remote_code=config.trust_remote_code if config else False,
        dtype=dtype,
        quantised=quantised,
    )
    return on_device(model, pick_device()).eval()
