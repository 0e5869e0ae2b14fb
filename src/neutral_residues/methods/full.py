"""What changes the backbone's own weights: fine-tuning, in full or of the FFNs, and averaging."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from neutral_residues.errors import UserError
from neutral_residues.results.digest import check_digest
from neutral_residues.tuner.blocks import find_blocks


def train_everything(model: PreTrainedModel) -> nn.Module:
    """Every weight trains."""
    model.requires_grad_(True)
    return model


def train_ffns(model: PreTrainedModel) -> nn.Module:
    """Only the feed-forward blocks train."""
    model.requires_grad_(False)
    for ffn in find_blocks(model, "ffn").values():
        ffn.requires_grad_(True)
    return model


@torch.no_grad()
def average_with(model: PreTrainedModel, finetuned: Path, *, share: float) -> nn.Module:
    """(1 - share) x backbone + share x fine-tuned, weight by weight, in place; nothing trains.

    Wortsman et al. 2022, *Robust fine-tuning of zero-shot models* (WiSE-FT), arXiv 2109.01903.

    `finetuned` holds the safetensors; a UserError if they are not of this backbone, fine-tuned.
    """
    check_digest(finetuned)
    tensors: dict[str, torch.Tensor] = {}
    for file in finetuned.glob("*.safetensors"):
        tensors |= load_file(file)
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name not in tensors or tensors[name].shape != parameter.shape:
            what = f"cannot average with {finetuned}: {name} is missing or of another shape"
            raise UserError(
                what, do="give the output folder of a full fine-tuning of this backbone"
            )
        parameter.lerp_(tensors[name].to(parameter), share)
    return model
