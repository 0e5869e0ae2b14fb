"""Contexts that run a model, or its backbone, for inference, and restore its state afterwards."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.layer import residue_layers
from neutral_residues.tuner.routing import temporarily


@contextmanager
def inference(model: nn.Module, reference: nn.Module | None = None) -> Iterator[None]:
    """Context in which both models are in eval mode, without gradients and without autocast, also
    without that of a trainer."""
    models = [model] if reference is None else [model, reference]
    modules = [module for one in models for module in one.modules()]
    plain = torch.autocast(next(model.parameters()).device.type, enabled=False)
    with ExitStack() as stack:
        stack.enter_context(temporarily(modules, "training", False))
        for one in models:
            # accelerate replaces `forward` by one in autocast whose outputs are float32.
            if own := vars(one).get("_original_forward"):
                stack.enter_context(temporarily([one], "forward", own))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(plain)
        yield


@contextmanager
def as_backbone(model: nn.Module, reference: nn.Module | None = None) -> Iterator[nn.Module]:
    """Context that gives the backbone: `reference`, or else `model` with its extension disabled.

    Raises:
        UserError: if there is no `reference` and `model` has no extension.
    """
    if reference is not None:
        yield reference
        return
    before = [parameter.requires_grad for parameter in model.parameters()]
    try:
        with _switched_off(model):
            yield model
    finally:
        # When PEFT enables the extension again, it makes it trainable, even in a model that was
        # loaded for inference.
        for parameter, trains in zip(model.parameters(), before, strict=True):
            parameter.requires_grad_(trains)


def untouched_rows(model: nn.Module, input_ids: Tensor) -> Tensor:
    """(B,), on the CPU: whether the outputs of the model on each row of `input_ids` (B, T) are
    those of its backbone, found without running it: all of its gates read tokens, and are exactly
    0 on these."""
    layer = embeddings_layer(model)
    if layer is not None:
        readers = layer.readers()
        active = {name for it in residue_layers(model).values() for name in it.active_names()}
        if all(name in readers and readers[name].kind == "relu" for name in active):
            return layer.shut_rows(input_ids)
    return torch.zeros(len(input_ids), dtype=torch.bool)


@contextmanager
def _switched_off(model: Any) -> Iterator[None]:
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    elif getattr(model, "_hf_peft_config_loaded", False):  # by Transformers' own add_adapter
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
