"""Saves a model of a class of Transformers with given weights."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def save_model(
    model_class: type[PreTrainedModel],
    config: Any,
    weights: dict[str, Tensor],
    folder: Path,
    *,
    dtype: torch.dtype,
    like: PreTrainedModel,
) -> None:
    """Save a model of class `model_class` with these weights.

    Args:
        weights: every tensor of its state dict.
        dtype: type of the stored weights.
        like: the model whose generation settings are saved with it.
    """
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.to(dtype)
    model.config.dtype = dtype
    model.generation_config = like.generation_config
    model.save_pretrained(folder)
