"""The table of methods: what trains, how a budget becomes a size, and the recipe each starts from.

Every method runs through the same loop, data, order of rows and evaluation; a row of this table is all that differs.
A method of your own is one more row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from neutral_residues.adapters.neutral import BlockGate
from neutral_residues.adapters.places import count_backbone_weights, find_ffns
from neutral_residues.adapters.settings import PREFIX, NeutralResiduesConfig
from neutral_residues.config import RunConfig
from neutral_residues.errors import UserError, nearest

RECIPE_WIDTH = 192
"""Learning rates of the table are for a backbone of this width; they shrink as 1/width (see LAB.md)."""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: as in run files.
        title: for tables.
        paper: where it comes from.
        trains: what has gradients.
        size: how the budget becomes a size.
        attach: makes the model to train from the backbone, in place where possible.
        learning_rate: peak for a backbone of width `RECIPE_WIDTH`.
        keeps_backbone: the backbone is still inside and can be switched on (`disable_adapter`).
        has_local_loss: its gates can be trained to stay shut on the source.
    """

    name: str
    title: str
    paper: str
    trains: str
    size: str
    attach: Callable[[PreTrainedModel, RunConfig], nn.Module]
    learning_rate: float
    keeps_backbone: bool = True
    has_local_loss: bool = False


def _attach_neutral(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    return _attach_residues(model, config, block_gate=config.residues.block_gate)


def _attach_adapter(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    return _attach_residues(model, config, block_gate="none")


def _attach_residues(model: PreTrainedModel, config: RunConfig, *, block_gate: BlockGate) -> nn.Module:
    layers = config.residues.layers
    peft_config = NeutralResiduesConfig(
        task_type="CAUSAL_LM",
        budget=config.budget,
        block_gate=block_gate,
        activation=config.residues.activation,
        init=config.residues.init,
        gate_start=config.residues.gate_start,
        layers_to_transform=list(layers) if layers is not None else None,
    )
    return get_peft_model(model, peft_config)


def _attach_lora(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    linears = _lora_places(model, only_mlp=config.lora.modules == "mlp")
    per_rank = sum(module.in_features + module.out_features for module in linears.values())
    rank = max(1, round(config.budget * count_backbone_weights(model, added=PREFIX) / per_rank))
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=config.lora.alpha_over_rank * rank, target_modules=list(linears)
    )
    return get_peft_model(model, lora)


def _lora_places(model: PreTrainedModel, *, only_mlp: bool) -> dict[str, nn.Linear]:
    """Linear layers inside the decoder's layers (not the embeddings or the head), by full name."""
    ffns = tuple(f"{name}." for name in find_ffns(model))
    layers = tuple(f"{name.rsplit('.', 2)[0]}." for name in ffns)
    inside = ffns if only_mlp else layers
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.startswith(inside)}


def _train_everything(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    model.requires_grad_(True)
    return model


METHODS: tuple[Method, ...] = (
    Method(
        name="neutral",
        title="neutral residues",
        paper="Talla et al. 2025, arXiv 2410.02744",
        trains="gated adapters parallel to every feed-forward block; local loss keeps them silent on the source",
        size="adapter width",
        attach=_attach_neutral,
        learning_rate=5e-3,
        has_local_loss=True,
    ),
    Method(
        name="adapter",
        title="gate-less adapter",
        paper="the vanilla adapter of arXiv 2410.02744",
        trains="adapters parallel to every feed-forward block, always on",
        size="adapter width",
        attach=_attach_adapter,
        learning_rate=5e-3,
    ),
    Method(
        name="lora",
        title="LoRA",
        paper="Hu et al. 2021, arXiv 2106.09685 (PEFT's own)",
        trains="low-rank updates of linear layers",
        size="rank",
        attach=_attach_lora,
        learning_rate=3e-3,
    ),
    Method(
        name="finetune",
        title="full fine-tuning",
        paper="-",
        trains="every weight of the backbone",
        size="none: no new weights",
        attach=_train_everything,
        learning_rate=1e-3,
        keeps_backbone=False,
    ),
)


def find_method(name: str) -> Method:
    """The row of that name.

    Raises:
        UserError: naming the nearest method.
    """
    for method in METHODS:
        if method.name == name:
            return method
    raise UserError(f"unknown method {name}", do=nearest(name, (m.name for m in METHODS)))


def check_settings_are_used(config: RunConfig) -> None:
    """A setting is never silently ignored: raise if a section is set that the method has no use for."""
    defaults = RunConfig.model_fields
    uses: dict[str, set[str]] = {"residues": {"neutral", "adapter"}, "lora": {"lora"}}
    for section, methods in uses.items():
        default: Any = defaults[section].default
        if getattr(config, section) != default and config.method not in methods:
            raise UserError(
                f"section {section} has no effect on method {config.method}",
                do=f"remove it, or choose method: {' or '.join(sorted(methods))}",
            )
    if config.method == "adapter":
        for key in (
            "block_gate",
            "gate_start",
            "local_loss",
            "local_loss_weight",
            "gate_learning_rate_factor",
            "source_noise",
        ):
            if getattr(config.residues, key) != getattr(defaults["residues"].default, key):
                raise UserError(f"residues.{key} has no effect on method adapter", do="remove it, or use neutral")


def learning_rate(config: RunConfig, *, hidden_size: int) -> float:
    """The run's peak learning rate: as set, or the method's recipe scaled to the backbone's width."""
    if config.training.learning_rate is not None:
        return config.training.learning_rate
    return find_method(config.method).learning_rate * RECIPE_WIDTH / hidden_size
