"""Methods without training: scale what a finished run has learnt by a share between 0 and 1.

    share 0   the backbone
    share 1   the trained model

Fine-tuning: (1 - share) x backbone + share x fine-tuned, weight by weight (Wortsman et al. 2022,
*Robust fine-tuning of zero-shot models* (WiSE-FT), arXiv 2109.01903). LoRA and the gate-less
adapter: their output is linear in one matrix of each layer, which is multiplied by the share.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from neutral_residues.config.base import differences
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.tuner.saved_adapter import load_adapter

LINEAR_IN = ("lora_B", "down")
"""Names of the modules whose weight is scaled: a LoRA update or an adapter is linear in it."""
MADE_BY: Any = {
    **dict.fromkeys(("model", "revision", "budget", "seed", "training"), True),
    "data": {"train", "source_share", "block_tokens"},
}
"""Settings that the scaled run shares with the trained one: how the weights were made."""


@torch.no_grad()
def scale_finetuned(model: PreTrainedModel, config: RunConfig, *, made_from: str) -> nn.Module:
    """The average of the backbone and a finished fine-tuning of it (`scaling.trained`), with
    weights 1 - share and share; changes `model` in place, and nothing trains.

    Raises:
        UserError: if there is no such run, it is damaged, or its weights have other names or
            shapes.
    """
    folder, tensors = _extension(config, made_from), dict[str, torch.Tensor]()
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name not in tensors or tensors[name].shape != parameter.shape:
            what = f"cannot average with {folder}: {name} is missing or of another shape"
            raise UserError(
                what, do="give the output folder of a full fine-tuning of this backbone"
            )
        parameter.lerp_(tensors[name].to(parameter), config.scaling.share)
    return model


@torch.no_grad()
def scale_adapter(model: PreTrainedModel, config: RunConfig, *, made_from: str) -> nn.Module:
    """The backbone with the extension of a finished run (`scaling.trained`), whose output is
    multiplied by the share; nothing trains.

    Raises:
        UserError: if there is no such run, or it is damaged.
    """
    extended = load_adapter(model, _extension(config, made_from))
    for name, parameter in extended.named_parameters():
        parts = name.split(".")
        if "default" in parts and not set(LINEAR_IN).isdisjoint(parts):
            parameter.mul_(config.scaling.share)
    return extended


def check_same_training(scaled: RunConfig, trained: RunConfig) -> None:
    """Raise a UserError for the first setting of how the weights are made that differs."""
    theirs, own = (it.model_dump(mode="json", include=MADE_BY) for it in (trained, scaled))
    for key, expected, got in differences(theirs, own):
        what = f"{scaled.method}: {scaled.scaling.trained} is trained with {key} {expected!r}"
        raise UserError(what, got=repr(got), do=f"give the same {key}, or another run")


def _extension(config: RunConfig, method: str) -> Path:
    """Folder of the weights that are scaled; a UserError if `scaling.trained` is not a finished,
    undamaged run of `method` with the settings of `config`."""
    given = config.scaling.trained
    if given is None or not RunFolder(given).is_finished:
        allowed = f"the output folder of a finished run of the method {method}"
        do, got = "run that first, or list both methods in a comparison", given and str(given)
        raise UserError("scaling.trained", got=got, allowed=allowed, do=do)
    run = load_run(RunFolder(given).config)
    if run.method != method:
        raise UserError(f"scaling.trained: method of {given}", got=run.method, allowed=method)
    check_same_training(config, run)
    extension = RunFolder(given).extension
    check_digests(extension)
    return extension
