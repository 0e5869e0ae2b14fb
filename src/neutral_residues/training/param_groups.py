"""Parameter groups of an optimizer, taken apart."""

from typing import Any

import torch
from torch import nn


def take_parameters(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> list[dict[str, Any]]:
    """Take `parameters` out of their parameter groups; returns groups that hold them, with the
    same settings."""
    chosen, taken = {id(parameter) for parameter in parameters}, []
    for group in optimizer.param_groups:
        moved = [p for p in group["params"] if id(p) in chosen]
        if moved:
            group["params"] = [p for p in group["params"] if id(p) not in chosen]
            taken.append({**group, "params": moved})
    return taken


def split_param_group(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], *, factor: float
) -> None:
    """Move `parameters` to separate parameter groups with `factor` times their learning rate."""
    for group in take_parameters(optimizer, parameters):
        optimizer.add_param_group({**group, "lr": group["lr"] * factor})
