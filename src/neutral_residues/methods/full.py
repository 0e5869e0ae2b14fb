"""Fine-tuning of the backbone's own weights: all of them, or those of the FFNs."""

from torch import nn
from transformers import PreTrainedModel

from neutral_residues.tuner.blocks import find_blocks


def train_everything(model: PreTrainedModel) -> nn.Module:
    """Make every weight of `model` trainable, in place."""
    model.requires_grad_(True)
    return model


def train_ffns(model: PreTrainedModel) -> nn.Module:
    """Make only the feed-forward blocks of `model` trainable, in place."""
    model.requires_grad_(False)
    for ffn in find_blocks(model, "ffn").values():
        ffn.requires_grad_(True)
    return model
