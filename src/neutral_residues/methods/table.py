"""The table of methods: what trains, how a budget becomes a size, and the recipe each starts from.

Every method runs through the same loop, data, order of rows and evaluation; a row of this table is
all that differs. A method of your own is one more row, in any module of yours: `method:
my_module:MY_ROW` in the run file.

Where we choose: the learning rates are for a backbone of width `RECIPE_WIDTH` and shrink as 1/width
(see LAB.md).
"""

import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from peft import get_peft_model
from torch import nn
from transformers import PreTrainedModel

from neutral_residues.config.choices import BlockGate
from neutral_residues.config.run import RunConfig
from neutral_residues.errors import UserError, first_line, nearest
from neutral_residues.methods.block_expansion import expand_blocks
from neutral_residues.methods.full import average_with, train_everything, train_ffns
from neutral_residues.methods.low_rank import attach_lora, attach_osf
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.tuner.config import NeutralResiduesConfig

RECIPE_WIDTH = 192

Afterwards = Literal["merge", "skip", "stock"]
"""merge: folds into the backbone's own matrices. skip: where a gate is exactly 0 nothing need be
computed. stock: what is saved, or exported from it (`neutral export`), is a model of an
architecture that Transformers has."""

METHOD_SECTIONS = ("residues", "lora", "averaging")
"""Sections of the run file that belong to some methods only."""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: as in run files.
        title: for tables.
        paper: where it comes from.
        trains: what has gradients.
        size: how the budget becomes a size; empty for a method that adds no weights.
        attach: makes the model to train from the backbone, in place where possible.
        learning_rate: peak for a backbone of width `RECIPE_WIDTH`; None where nothing trains.
        afterwards: what can be done with the result.
        keeps_backbone: the backbone is still inside and can be switched on (`disable_adapter`).
        has_local_loss: its gates can be trained to stay shut on the source.
        uses: settings of `METHOD_SECTIONS` that count for it, as "section" or "section.key".
        fixed: settings that make the row what it is.
        recipe: its own defaults, where the run file says nothing.
        curve: a setting and the values that a comparison tries, where one training gives them all.
    """

    name: str
    title: str
    paper: str
    trains: str
    size: str
    attach: Callable[[PreTrainedModel, RunConfig], nn.Module]
    learning_rate: float | None
    afterwards: tuple[Afterwards, ...] = ()
    keeps_backbone: bool = True
    has_local_loss: bool = False
    uses: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    curve: tuple[str, tuple[float, ...]] | None = None

    @property
    def has_budget(self) -> bool:
        return bool(self.size)

    @property
    def trains_any(self) -> bool:
        """Whether there is anything to train."""
        return self.learning_rate is not None


def _attach_neutral(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    return _attach_residues(model, config, block_gate=config.residues.block_gate)


def _attach_adapter(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    return _attach_residues(model, config, block_gate="none")


def _attach_residues(
    model: PreTrainedModel, config: RunConfig, *, block_gate: BlockGate
) -> nn.Module:
    layers = config.residues.layers
    peft_config = NeutralResiduesConfig(
        task_type="CAUSAL_LM",
        budget=config.budget,
        block_gate=block_gate,
        activation=config.residues.activation,
        init=config.residues.init,
        gate_start=config.residues.gate_start,
        placement=config.residues.placement,
        layers_to_transform=list(layers) if layers is not None else None,
    )
    return get_peft_model(model, peft_config)


def _lora(
    *, alpha: float | None = None, **kind: bool
) -> Callable[[PreTrainedModel, RunConfig], nn.Module]:
    def attach(model: PreTrainedModel, config: RunConfig) -> nn.Module:
        settings = config.lora
        return attach_lora(
            model,
            budget=config.budget,
            only_ffn=settings.modules == "mlp",
            alpha=alpha,
            alpha_over_rank=settings.alpha_over_rank,
            **kind,
        )

    return attach


def _attach_average(model: PreTrainedModel, config: RunConfig) -> nn.Module:
    folder = config.averaging.finetuned
    if folder is None or not RunFolder(folder).is_finished:
        raise UserError(
            "averaging.finetuned",
            got=folder and str(folder),
            allowed="the output folder of a finished run of the method finetune",
            do="run that first, or list both methods in a comparison",
        )
    return average_with(model, RunFolder(folder).extension, share=config.averaging.share)


METHODS: tuple[Method, ...] = (
    Method(
        name="neutral",
        title="neutral residues",
        paper="Talla et al. 2025, arXiv 2410.02744",
        trains=(
            "gated adapters parallel to the feed-forward blocks; L1 keeps them silent on the source"
        ),
        size="adapter width",
        attach=_attach_neutral,
        learning_rate=5e-3,
        afterwards=("skip",),
        has_local_loss=True,
        uses=("residues",),
    ),
    Method(
        name="neutral-elu",
        title="neutral residues, ELU gate",
        paper="the first version of arXiv 2410.02744",
        trains="as neutral, with a gate that is never exactly 0",
        size="adapter width",
        attach=_attach_neutral,
        learning_rate=5e-3,
        has_local_loss=True,
        uses=("residues",),
        fixed={"residues.block_gate": "elu"},
    ),
    Method(
        name="neutral-sigmoid",
        title="neutral residues, sigmoid gate",
        paper="ours; after arXiv 2410.02744",
        trains="as neutral, with a gate that is never exactly 0",
        size="adapter width",
        attach=_attach_neutral,
        learning_rate=5e-3,
        afterwards=("stock",),
        has_local_loss=True,
        uses=("residues",),
        fixed={"residues.block_gate": "sigmoid"},
        recipe={"residues.gate_start": "half"},
    ),
    Method(
        name="neutral-classifier",
        title="neutral residues, gate as classifier",
        paper="the main alternative in arXiv 2410.02744",
        trains="as neutral, with a sigmoid gate and cross-entropy: is this a target row",
        size="adapter width",
        attach=_attach_neutral,
        learning_rate=5e-3,
        has_local_loss=True,
        uses=("residues",),
        fixed={"residues.block_gate": "sigmoid", "residues.local_loss": "cross_entropy"},
        recipe={"residues.local_loss_weight": 0.1},
    ),
    Method(
        name="adapter",
        title="gate-less adapter",
        paper="the vanilla adapter of arXiv 2410.02744",
        trains="adapters parallel to the feed-forward blocks, always on",
        size="adapter width",
        attach=_attach_adapter,
        learning_rate=5e-3,
        afterwards=("stock",),
        uses=("residues.activation", "residues.init", "residues.layers", "residues.placement"),
    ),
    Method(
        name="lora",
        title="LoRA",
        paper="Hu et al. 2021, arXiv 2106.09685 (PEFT's own)",
        trains="low-rank updates of all linear layers",
        size="rank",
        attach=_lora(),
        learning_rate=3e-3,
        afterwards=("merge",),
        uses=("lora",),
    ),
    Method(
        name="lora-mlp",
        title="LoRA on the MLP",
        paper="Hu et al. 2021, arXiv 2106.09685 (PEFT's own)",
        trains="low-rank updates of the feed-forward blocks",
        size="rank",
        attach=_lora(),
        learning_rate=3e-3,
        afterwards=("merge",),
        uses=("lora",),
        fixed={"lora.modules": "mlp"},
    ),
    Method(
        name="rslora",
        title="rsLoRA",
        paper="Kalajdzievski 2023, arXiv 2312.03732 (PEFT's own), alpha 16",
        trains="as lora, scaled by 1/sqrt(rank)",
        size="rank",
        attach=_lora(alpha=16.0, use_rslora=True),
        learning_rate=3e-3,
        afterwards=("merge",),
        uses=("lora.modules",),
    ),
    Method(
        name="dora",
        title="DoRA",
        paper="Liu et al. 2024, arXiv 2402.09353 (PEFT's own)",
        trains="as lora, and the length of every output's weights",
        size="rank",
        attach=_lora(use_dora=True),
        learning_rate=3e-3,
        afterwards=("merge",),
        uses=("lora",),
    ),
    Method(
        name="osf",
        title="OSF",
        paper="Nayak et al. 2025, arXiv 2504.07097 (PEFT's own)",
        trains="the smallest singular directions of all linear layers, orthogonal to the rest",
        size="number of directions that train",
        attach=lambda model, config: attach_osf(model, budget=config.budget),
        learning_rate=3e-3,
        afterwards=("merge",),
    ),
    Method(
        name="block-expansion",
        title="block expansion",
        paper="LLaMA Pro, Wu et al. 2024, arXiv 2401.02415",
        trains="copies of whole layers, spread evenly, that start silent",
        size="number of layers",
        attach=lambda model, config: expand_blocks(model, budget=config.budget),
        learning_rate=2e-3,
        afterwards=("stock",),
        keeps_backbone=False,
    ),
    Method(
        name="finetune",
        title="full fine-tuning",
        paper="-",
        trains="every weight of the backbone",
        size="",
        attach=lambda model, config: train_everything(model),
        learning_rate=1e-3,
        afterwards=("merge", "stock"),
        keeps_backbone=False,
    ),
    Method(
        name="finetune-ffn",
        title="fine-tuning of the FFN",
        paper="-",
        trains="the feed-forward blocks of the backbone",
        size="",
        attach=lambda model, config: train_ffns(model),
        learning_rate=1e-3,
        afterwards=("merge", "stock"),
        keeps_backbone=False,
    ),
    Method(
        name="wise-ft",
        title="weight averaging",
        paper="WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903",
        trains="nothing: averages backbone and fine-tuned model",
        size="",
        attach=_attach_average,
        learning_rate=None,
        afterwards=("merge", "stock"),
        keeps_backbone=False,
        uses=("averaging",),
        curve=("averaging.share", (0.2, 0.4, 0.6, 0.8)),
    ),
)


def find_method(name: str) -> Method:
    """The row of that name, or the one that "module:NAME" points to.

    Raises:
        UserError: naming the nearest method.
    """
    if ":" in name:
        return _own_row(name)
    for method in METHODS:
        if method.name == name:
            return method
    raise UserError(f"unknown method {name}", do=nearest(name, (m.name for m in METHODS)))


def _own_row(path: str) -> Method:
    if "" not in sys.path:  # as for `python -m`: modules beside the run file's working folder
        sys.path.insert(0, "")
    try:
        row = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot import the method {path}", got=first_line(error), allowed="module:NAME"
        ) from error
    if not isinstance(row, Method):
        raise UserError(
            f"{path} is no method",
            got=type(row).__name__,
            allowed="a neutral_residues.methods.Method",
        )
    return row


def resolved(config: RunConfig, method: Method) -> RunConfig:
    """The run with its method's own settings filled in, after checking that no setting is without
    effect.

    Raises:
        UserError: for a setting that the method has no use for, or that contradicts what makes it
            what it is.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key, value in {**method.recipe, **method.fixed}.items():
        section, name = key.split(".")
        settings = getattr(config, section)
        given = name in settings.model_fields_set
        got = getattr(settings, name)
        if given and key in method.fixed and got != value:
            raise UserError(
                f"{key} is fixed by method {method.name}",
                got=got,
                allowed=str(value),
                do="remove it",
            )
        if not given:
            changes.setdefault(section, {})[name] = value
    sections = {
        section: getattr(config, section).model_copy(update=update)
        for section, update in changes.items()
    }
    config = config.model_copy(update=sections)
    _check_settings_are_used(config, method)
    if config.training.frozen_weights != "auto" and not method.keeps_backbone:
        raise UserError(
            f"training.frozen_weights has no effect on method {method.name}, which has no frozen"
            " backbone",
            got=config.training.frozen_weights,
            do="remove it",
        )
    return config


def _check_settings_are_used(config: RunConfig, method: Method) -> None:
    """A setting is never silently ignored."""
    for section in METHOD_SECTIONS:
        if section in method.uses:
            continue
        changed = [
            name
            for name, value in getattr(config, section)
            if value != _default(section, name) and f"{section}.{name}" not in method.uses
        ]
        if changed:
            users = [m.name for m in METHODS if {section, f"{section}.{changed[0]}"} & set(m.uses)]
            raise UserError(
                f"{section}.{changed[0]} has no effect on method {method.name}",
                do=f"remove it, or choose method: {', '.join(users)}",
            )


def _default(section: str, name: str) -> Any:
    return getattr(RunConfig.model_fields[section].default, name)


def learning_rate(config: RunConfig, method: Method, *, hidden_size: int) -> float:
    """The run's peak learning rate: as set, or the method's recipe scaled to the backbone's
    width."""
    if config.training.learning_rate is not None:
        return config.training.learning_rate
    return (method.learning_rate or 0.0) * RECIPE_WIDTH / hidden_size
