"""Running a model as it is, or as its backbone, and leaving it as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from neutral_residues.errors import UserError


@contextmanager
def inference(*models: nn.Module | None) -> Iterator[None]:
    """Within the block the models are in eval mode, without gradients and without autocast; after
    it, as they were."""
    modules = [module for model in models if model is not None for module in model.modules()]
    training = [module for module in modules if module.training]
    device = next(
        parameter.device
        for model in models
        if model is not None
        for parameter in model.parameters()
    )
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def as_backbone(model: nn.Module, reference: nn.Module | None = None) -> Iterator[nn.Module]:
    """Within the block, a model that is the backbone: `reference`, or `model` with its extension
    switched off.

    Raises:
        UserError: if there is neither.
    """
    if reference is not None:
        yield reference
        return
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    try:
        with _switched_off(model):
            yield model
    finally:
        # PEFT marks the active extension as trainable when it comes back, even in a model that was
        # loaded frozen.
        for parameter in model.parameters():
            if parameter.requires_grad != (id(parameter) in trainable):
                parameter.requires_grad_(id(parameter) in trainable)


@contextmanager
def _switched_off(model: Any) -> Iterator[None]:
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    elif getattr(
        model, "_hf_peft_config_loaded", False
    ):  # attached by Transformers' own add_adapter
        model.disable_adapters()
        try:
            yield
        finally:
            model.enable_adapters()
    else:
        raise UserError(
            "no backbone to compare with: the model has no extension that could be switched off",
            got=type(model).__name__,
            allowed="a PEFT model, or any model together with reference=",
        )
