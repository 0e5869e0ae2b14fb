"""What changes the backbone's own weights: fine-tuning, in full or of the FFNs."""

from torch import nn
from transformers import PreTrainedModel

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
