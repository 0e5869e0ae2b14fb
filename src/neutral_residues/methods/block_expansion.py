"""Block expansion: copies of whole layers, spread evenly, that do nothing at the start and are all
that trains.

Wu et al. 2024, *LLaMA Pro: Progressive LLaMA with Block Expansion*, arXiv 2401.02415. A copy's two
output projections (attention's and the feed-forward block's) are zero, so it passes its input on
unchanged, and the expanded model is the backbone at step 0. The result is a model of the backbone's
own architecture with more layers.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neutral_residues.errors import UserError, first_line
from neutral_residues.tuner.blocks import count_backbone_weights, find_layers, text_config
from neutral_residues.tuner.neutral import BUDGET_TOLERANCE

OUTPUT_PROJECTIONS = (
    "o_proj",
    "out_proj",
    "down_proj",
    "c_proj",
    "dense",
    "dense_4h_to_h",
    "fc2",
    "fc_out",
    "w2",
    "wo",
)
"""Names of the linear layers whose output is added to the residual stream."""


def expand_blocks(model: PreTrainedModel, *, budget: float) -> nn.Module:
    """Insert copies of layers, as many as the budget allows; only they train. In place.

    Raises:
        UserError: if no whole number of layers comes within 2 % of the budget (names the two
            nearest), a layer's output projections are not found, or the expanded model is not the
            backbone at the start.
    """
    layers = find_layers(model)
    before = _few_logits(model)
    count = _count_for_budget(model, budget, layers)
    model.requires_grad_(False)
    after = _spread(count, len(layers))
    order: list[int] = []
    blocks: list[nn.Module] = []
    for number, layer in enumerate(layers.values()):
        order.append(number)
        blocks.append(layer)
        for _ in range(after.count(number)):
            order.append(number)
            blocks.append(_silent_copy(layer))
    _put(model, next(iter(layers)), blocks)
    _renumber(blocks)
    _expand_config(text_config(model), order)
    _check_identity(model, before)
    return model


@torch.no_grad()
def _few_logits(model: nn.Module) -> Tensor | None:
    """Of a few tokens; None for a model without weights, which is only counted."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return None
    logits: Tensor = model(input_ids=torch.arange(8, device=device)[None], use_cache=False).logits
    return logits


def _check_identity(model: nn.Module, before: Tensor | None) -> None:
    """Some architectures add more to the residual stream than two projections, or count their
    layers elsewhere too."""
    try:
        after = _few_logits(model)
    except Exception as error:
        raise _not_expandable(model, first_line(error)) from error
    if before is None or after is None:
        return
    change = (after - before).abs().max()
    if change > 1e-4 * before.abs().max():
        raise _not_expandable(model, f"silent copies change its logits by {change:.1e}")


def _not_expandable(model: nn.Module, got: str) -> UserError:
    return UserError(
        f"block expansion cannot expand {type(model).__name__}", got=got, do="choose another method"
    )


def _count_for_budget(model: nn.Module, budget: float, layers: dict[str, nn.Module]) -> int:
    backbone = count_backbone_weights(model)
    sizes = {sum(p.numel() for p in layer.parameters()) for layer in layers.values()}
    if len(sizes) > 1:
        raise UserError(
            "block expansion needs layers of one size",
            got=f"{len(sizes)} sizes",
            do="choose another method",
        )
    per_layer = sizes.pop()
    count = max(1, round(budget * backbone / per_layer))
    share = count * per_layer / backbone
    if abs(share - budget) > BUDGET_TOLERANCE * budget:
        below = max(1, int(budget * backbone / per_layer))
        nearest = ", ".join(f"{n * per_layer / backbone:.5f} ({n})" for n in (below, below + 1))
        raise UserError(
            "budget cannot be met within 2 % by a whole number of layers",
            got=budget,
            do=f"the nearest are {nearest}",
        )
    return count


def _spread(count: int, num_layers: int) -> list[int]:
    """After which layers the copies stand: the last of each of `count` equal groups."""
    return [min(num_layers, round((i + 1) * num_layers / count)) - 1 for i in range(count)]


@torch.no_grad()
def _silent_copy(layer: nn.Module) -> nn.Module:
    block = copy.deepcopy(layer).requires_grad_(True)
    outputs = [
        module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.rsplit(".", 1)[-1] in OUTPUT_PROJECTIONS
    ]
    if len(outputs) < 2:
        raise UserError(
            f"the output projections of {type(layer).__name__} were not found",
            got=f"{len(outputs)} of 2",
            allowed=f"linear layers named {', '.join(OUTPUT_PROJECTIONS)}",
            do="choose another method",
        )
    for module in outputs:
        for parameter in module.parameters():
            parameter.zero_()
    return block


def _put(model: nn.Module, first_layer: str, blocks: list[nn.Module]) -> None:
    parent, _, name = first_layer.rpartition(".")[0].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(blocks))


def _renumber(blocks: list[nn.Module]) -> None:
    """Every layer's place in the key-value cache is its own number."""
    for number, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]


def _expand_config(config: PretrainedConfig, order: list[int]) -> None:
    """The number of layers, and every setting that has one entry for each layer (`layer_types`,
    ...)."""
    before = config.num_hidden_layers
    per_layer: dict[str, Any] = {
        key: value
        for key, value in vars(config).items()
        if isinstance(value, list) and len(value) == before
    }
    config.num_hidden_layers = len(order)
    for key, value in per_layer.items():
        setattr(config, key, [value[number] for number in order])
