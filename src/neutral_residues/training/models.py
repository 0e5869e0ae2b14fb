"""The models of a checked run, with their weights: the backbone, the model to train, and what that
is compared with."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, set_seed

from neutral_residues.backbone import frozen_precision, load_backbone, on_device
from neutral_residues.methods.token_starts import StartRows
from neutral_residues.methods.wider_tables import start_rows, widen_tables
from neutral_residues.training.setup import ADAPTER, Setup, ranks
from neutral_residues.training.start_rows import start_rows as found_start_rows
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.saved_adapter import add_adapter


def backbone_of(setup: Setup, *, frozen: bool) -> PreTrainedModel:
    """The backbone on the run's device. A frozen one has the precision of the run file; one that is
    trained has float32, and autocast computes in bfloat16."""
    config, dtype, quantised = setup.config, torch.float32, None
    if frozen:
        dtype, quantised = frozen_precision(config.training, bf16=setup.bf16)
    model = load_backbone(config.model, **config.hub_options, dtype=dtype, quantised=quantised)
    return on_device(model, setup.device)


def reference_of(setup: Setup) -> PreTrainedModel | None:
    """A frozen backbone to compare the model to train with; None if that gives exactly the
    backbone's outputs when its extension is disabled."""
    if setup.method.keeps_backbone and not setup.widens_tables:
        return None
    return backbone_of(setup, frozen=True)


def model_to_train(setup: Setup) -> nn.Module:
    """The backbone with the method attached, initialised with the run's seed."""
    set_seed(setup.config.seed)
    backbone = backbone_of(setup, frozen=setup.method.keeps_backbone)
    rows = _start_rows(setup, backbone)
    if setup.widens_tables:
        widen_tables(backbone, setup.config.vocabulary.size)
        if rows is not None:
            start_rows(backbone, rows)
    model = setup.method.attach(backbone, setup.config)
    for adapter in getattr(model, "peft_config", {}).values():
        adapter.revision = setup.config.revision
    for it in setup.beside:
        add_adapter(model, it.weights, it.name)
    if setup.beside:
        activate_extensions(setup, model)
    if setup.start:
        setup.start.load(model, ADAPTER)
        return model
    layer = embeddings_layer(model)
    if rows is not None and layer is not None and (tokens := layer.tokens(ADAPTER)):
        tokens.start_from(*rows)
    if setup.method.calibrate is not None:
        setup.method.calibrate(model, setup.source_rows())
    return model


def activate_extensions(setup: Setup, model: nn.Module) -> None:
    """Activate all extensions of a model with several, and freeze those of `beside`."""
    extended: Any = model
    extended.base_model.set_adapter([*setup.config.extension_names, *setup.config.beside])
    extended.set_requires_grad(list(setup.config.beside), requires_grad=False)


def _start_rows(setup: Setup, backbone: PreTrainedModel) -> StartRows | None:
    """Initial rows of the new tokens; None without new tokens, with `start_from` or if they start
    at random. The main process fills the cache, the other ranks read it."""
    if setup.vocabulary is None or setup.start:
        return None
    target = [stream for stream in setup.data.train if stream.role == "target"]
    with ranks().main_process_first():
        return found_start_rows(
            setup.config,
            backbone,
            setup.pieces,
            target,
            bf16=setup.bf16,
            tokenising=setup.tokenising,
        )
