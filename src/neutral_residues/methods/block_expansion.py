"""Block expansion: copies of whole layers are inserted at even distances, and only they train.

Wu et al. 2024, *LLaMA Pro: Progressive LLaMA with Block Expansion*, arXiv 2401.02415. The two
output projections of a copy (of attention and feed-forward block) start at zero, so that it passes
its input on unchanged, and the expanded model has the backbone's outputs at step 0. The result is a
model of the backbone's architecture with more layers.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from neutral_residues.errors import UserError, first_line
from neutral_residues.methods.budget import units_for_budget
from neutral_residues.tuner.blocks import find_layers, text_config

# fmt: off
OUTPUT_PROJECTIONS = (
    "c_proj", "dense", "dense_4h_to_h", "down_proj", "fc2", "fc_out", "o_proj", "out_proj", "w2",
    "wo",
)
# fmt: on
"""Names of the linear layers whose output is added to the residual stream."""


def expand_blocks(model: PreTrainedModel, *, budget: float) -> nn.Module:
    """Insert copies of layers into `model`, in place, and make only them trainable.

    Args:
        budget: weights of all copies as a share of the backbone's.

    Raises:
        UserError: if no whole number of layers comes within 2 % of the budget (names the nearest),
            layers differ in size, output projections are not found, or the outputs of the expanded
            model are not the backbone's.
    """
    layers = find_layers(model)
    before = _few_logits(model)
    sizes = {sum(p.numel() for p in layer.parameters()) for layer in layers.values()}
    if len(sizes) > 1:
        what, got = "block expansion needs layers of one size", f"{len(sizes)} sizes"
        raise UserError(what, got=got, do="choose another method")
    count = units_for_budget(model, budget, unit="number of layers", weights_per_unit=sizes.pop())
    model.requires_grad_(False)
    after = _spread(count, len(layers))
    order: list[int] = []
    blocks: list[nn.Module] = []
    for number, layer in enumerate(layers.values()):
        copies = [_zero_output_copy(layer) for _ in range(after.count(number))]
        blocks += [layer, *copies]
        order += [number] * (1 + len(copies))
    parent, _, name = next(iter(layers)).rpartition(".")[0].rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList(blocks))
    _renumber(blocks)
    _expand_config(text_config(model), order)
    _check_identity(model, before)
    return model


@torch.no_grad()
def _few_logits(model: nn.Module) -> Tensor | None:
    """Logits (1, 8, V) of a few tokens; None on the meta device, where weights are only counted."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return None
    logits: Tensor = model(input_ids=torch.arange(8, device=device)[None], use_cache=False).logits
    return logits


def _check_identity(model: nn.Module, before: Tensor | None) -> None:
    """Raise a UserError if logits changed: some architectures add more than two projections to the
    residual stream, or store their number of layers in other places too."""
    problem = None
    try:
        after = _few_logits(model)
        if before is not None and after is not None:
            change = (after - before).abs().max()
            if change > 1e-4 * before.abs().max():
                problem = f"its logits change by {change:.1e} at the start"
    except Exception as error:
        problem = first_line(error)
    if problem is not None:
        what = f"block expansion cannot expand {type(model).__name__}"
        raise UserError(what, got=problem, do="choose another method")


def _spread(count: int, num_layers: int) -> list[int]:
    """Indices of the layers after which copies are inserted: the last of each of `count` equal
    groups."""
    return [min(num_layers, round((i + 1) * num_layers / count)) - 1 for i in range(count)]


@torch.no_grad()
def _zero_output_copy(layer: nn.Module) -> nn.Module:
    block = copy.deepcopy(layer).requires_grad_(True)
    linears = {n: m for n, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    outputs = [m for n, m in linears.items() if n.rpartition(".")[2] in OUTPUT_PROJECTIONS]
    if len(outputs) < 2:
        what = f"the output projections of {type(layer).__name__} were not found"
        allowed = f"linear layers named {', '.join(OUTPUT_PROJECTIONS)}"
        got, do = f"{len(outputs)} of 2", "choose another method"
        raise UserError(what, got=got, allowed=allowed, do=do)
    for module in outputs:
        for parameter in module.parameters():
            parameter.zero_()
    return block


def _renumber(blocks: list[nn.Module]) -> None:
    """Give every layer its own index in the key-value cache."""
    for number, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]


def _expand_config(config: PretrainedConfig, order: list[int]) -> None:
    """Update the number of layers and every setting with one entry per layer (`layer_types`)."""
    before, config.num_hidden_layers = config.num_hidden_layers, len(order)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == before:
            setattr(config, key, [value[number] for number in order])
