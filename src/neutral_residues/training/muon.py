"""torch's Muon for the matrices inside the layers, beside AdamW for all other weights.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) moves a matrix by the same
amount along each of its directions, where AdamW follows the few in which gradients are large. Its
updates are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982). What it gains and
what a step costs: LAB.md, "Muon".
"""

import math
from typing import Any

import torch
from torch import nn

from neutral_residues.errors import UserError
from neutral_residues.methods.table import RECIPE_WIDTH
from neutral_residues.training.param_groups import take_parameters
from neutral_residues.tuner.layer import trained_gates


def add_muon(model: nn.Module, adamw: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Hand the matrices inside the layers from `adamw` to Muon, and return both as one optimizer.
    Raises a UserError for a model that trains no such matrix."""
    groups = take_parameters(adamw, matrices_in_layers(model))
    if not groups:
        do = "set training.optimizer: adamw, or muon=False in a script"
        raise UserError("Muon has no matrix in a layer to train", do=do)
    factor = rate_factor(model)
    moved = [
        {
            "params": group["params"],
            "lr": group["lr"] * factor,
            "weight_decay": group["weight_decay"],
        }
        for group in groups
    ]
    return _Both(adamw, torch.optim.Muon(moved, adjust_lr_fn="match_rms_adamw"))


def rate_factor(model: nn.Module) -> float:
    """Learning rate of Muon, as a multiple of that of AdamW: 2 at hidden size `RECIPE_WIDTH`.

    If all N weights that a number depends on move by the same amount, it moves N times as much with
    AdamW, where they move together, and sqrt(N) times as much with Muon. So Muon's rate shrinks
    with the root of the hidden size where that of AdamW shrinks with the hidden size.
    """
    config: Any = model.config
    return 2 * math.sqrt(config.get_text_config().hidden_size / RECIPE_WIDTH)


def matrices_in_layers(model: nn.Module) -> list[nn.Parameter]:
    """The trained matrices that are not part of embeddings, output head or gates."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    others = [module for module in [*ends, *trained_gates(model)] if module is not None]
    outside = {id(weight) for module in others for weight in module.parameters()}
    return [
        weight
        for weight in model.parameters()
        if weight.requires_grad and weight.ndim == 2 and id(weight) not in outside
    ]


class _Both(torch.optim.Optimizer):
    """Two optimizers as one. Learning rates are scheduled in the parameter groups, which are those
    of the two; the state is kept by each."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
