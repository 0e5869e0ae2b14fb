"""The table of methods: for each, what trains, how a budget becomes a size, and its defaults.

All methods share the training loop, data, order of rows and evaluation; they differ only in their
row of this table. A method of your own is another row, in any module of yours: write `method:
my_module:MY_ROW` in the run file.

Where we choose: learning rates are for a backbone of hidden size `RECIPE_WIDTH`, and are scaled
with 1 / hidden size for others (LAB.md, "what moved the curve, and what did not"); AdamW or Muon,
whichever was better for a method (LAB.md, "Muon").
"""

import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, cast

from peft import get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from neutral_residues.config.choices import check_choices
from neutral_residues.config.run import RunConfig
from neutral_residues.errors import UserError, first_line, nearest
from neutral_residues.methods.block_expansion import expand_blocks
from neutral_residues.methods.disel import disel_gates
from neutral_residues.methods.full import train_everything, train_ffns
from neutral_residues.methods.low_rank import attach_lora, attach_osf, embedding_weights
from neutral_residues.methods.scaled import scale_adapter, scale_finetuned
from neutral_residues.methods.ssu import freeze_source_columns
from neutral_residues.tuner.config import NeutralResiduesConfig

RECIPE_WIDTH = 192

Afterwards = Literal["merge", "skip", "stock"]
"""What can be done with a trained model. merge: the update can be merged into the backbone's
matrices. skip: nothing is computed where a gate is exactly 0. stock: the saved model, or its export
(`neutral export`), has an architecture of Transformers."""

NewTokens = Literal["beside", "in tables", "none"]
"""Where the rows of new tokens are. beside: in the extension, so that the backbone's embeddings and
head stay as they are. in tables: embeddings and head get more rows (`wider_tables.py`). none: the
method cannot learn new tokens."""

METHOD_SECTIONS = ("residues", "lora", "scaling")
"""Sections of the run file that only some methods use."""

Attach = Callable[[PreTrainedModel, RunConfig], nn.Module]
LearningRateFactor = Callable[[nn.Module, RunConfig], tuple[list[nn.Parameter], float]]


@dataclass(frozen=True)
class Method:
    """One method, a row of the table."""

    name: str  # in run files
    title: str  # in tables and reports
    paper: str  # source
    trains: str  # what trains, in words
    size: str  # the size that the budget determines; empty for a method that adds no weights
    attach: Attach  # (backbone, run file) -> the model to train; may change the backbone in place
    learning_rate: float | None  # peak at hidden size `RECIPE_WIDTH`; None if nothing trains
    afterwards: tuple[Afterwards, ...] = ()  # what can be done with the trained model
    keeps_backbone: bool = True  # `disable_adapter` gives the backbone back
    has_local_loss: bool = False  # its gates can be trained to stay closed on source text
    uses: tuple[str, ...] = ()  # settings of `METHOD_SECTIONS`, as "section" or "section.key"
    fixed: Mapping[str, Any] = field(default_factory=dict)  # "section.key" -> value, not changeable
    recipe: Mapping[str, Any] = field(default_factory=dict)  # "section.key" -> default of its own
    # A setting and the values that a comparison tries, if all of them come from one training.
    curve: tuple[str, tuple[float, ...]] | None = None
    # Prepares the attached model before training, given source rows (N, T) of token ids.
    calibrate: Callable[[nn.Module, Tensor], None] | None = None
    # Gives the weights with a learning rate of their own, and the factor on it.
    learning_rate_factor: LearningRateFactor | None = None
    made_from: str = ""  # the method whose finished run it scales; it trains nothing itself
    new_tokens: NewTokens = "none"

    @property
    def has_budget(self) -> bool:
        """Whether it adds weights, and so needs a budget."""
        return bool(self.size)

    @property
    def size_in_words(self) -> str:
        """What determines the number of added weights, as a phrase for lists of methods."""
        if self.made_from:
            return f"as {self.made_from}"
        return f"the budget becomes {self.size}" if self.size else "adds no weights"

    @property
    def trains_any(self) -> bool:
        """Whether the method trains any weights."""
        return self.learning_rate is not None

    def peak_learning_rate(self, config: RunConfig, *, hidden_size: int) -> float:
        """The learning rate of the run file; if it sets none, that of the method, scaled to the
        backbone's hidden size."""
        if config.training.learning_rate is not None:
            return config.training.learning_rate
        return (self.learning_rate or 0.0) * RECIPE_WIDTH / hidden_size

    def resolve(self, config: RunConfig) -> RunConfig:
        """The run file with the method's defaults and fixed settings filled in. Raises a UserError
        for a setting that has no effect on the method, or differs from a fixed one."""
        changed: dict[str, Any] = {}
        for key, value in {**self.recipe, **self.fixed}.items():
            section, name = key.split(".")
            settings = changed.get(section, getattr(config, section))
            if name not in settings.model_fields_set:
                changed[section] = settings.model_copy(update={name: value})
            elif key in self.fixed and (got := getattr(settings, name)) != value:
                what = f"{key} is fixed by method {self.name}"
                raise UserError(what, got=got, allowed=str(value), do="remove it")
        config = config.model_copy(update=changed)
        self._check_settings_have_effect(config)
        return config

    def _check_settings_have_effect(self, config: RunConfig) -> None:
        for section in METHOD_SECTIONS:
            default = RunConfig.model_fields[section].default
            for name, value in getattr(config, section):
                key = f"{section}.{name}"
                if value != getattr(default, name) and not self._uses(key):
                    users = ", ".join(method.name for method in METHODS if method._uses(key))
                    what = f"{key} has no effect on method {self.name}"
                    raise UserError(what, do=f"remove it, or choose method: {users}")
        held = config.training.frozen_weights
        if held != "auto" and not self.keeps_backbone:
            key = "training.frozen_weights"
            what = f"{key} has no effect on method {self.name}, which has no frozen backbone"
            raise UserError(what, got=held, do="remove it")
        self._check_kl_has_effect(config)
        if config.vocabulary.size and self.new_tokens == "none":
            able = ", ".join(method.name for method in METHODS if method.new_tokens != "none")
            what = f"method {self.name} cannot learn new tokens"
            raise UserError(what, got=config.vocabulary.size, do=f"choose method: {able}")
        if self._uses("residues.gate_start"):
            names = ("block_gate", "gate_start", "gate_reads", "local_loss")
            check_choices(**{name: getattr(config.residues, name) for name in names})
        if self.calibrate and not any(corpus.role == "source" for corpus in config.data.train):
            what = f"method {self.name} needs source text to choose what trains"
            raise UserError(what, do="add a corpus with role: source to data.train")

    def _check_kl_has_effect(self, config: RunConfig) -> None:
        weight = config.training.kl_weight
        if weight and config.data.source_share == 0:
            what = "training.kl_weight has no effect without source rows"
            raise UserError(what, got=weight, do="remove it, or set data.source_share above 0")

    def _uses(self, key: str) -> bool:
        return key in self.uses or key.split(".")[0] in self.uses


def _attach_residues(model: PreTrainedModel, config: RunConfig, **changes: Any) -> nn.Module:
    """Attach neutral residues with the settings of the run file; those that
    `NeutralResiduesConfig` has too have the same name there."""
    names = {setting.name for setting in fields(NeutralResiduesConfig)}
    settings = config.residues.model_dump(mode="json", include=names) | changes
    settings |= {"budget": config.budget, "new_tokens": config.vocabulary.size}

    def peft_config() -> NeutralResiduesConfig:
        return NeutralResiduesConfig(task_type="CAUSAL_LM", **settings)

    several = config.extension_names
    if not several:
        return get_peft_model(model, peft_config())
    extended: Any = get_peft_model(model, peft_config(), adapter_name=several[0])
    for name in several[1:]:
        extended.add_adapter(name, peft_config())
    extended.base_model.set_adapter(several)
    return cast(nn.Module, extended)


def _attach_lora(model: PreTrainedModel, config: RunConfig, **options: Any) -> nn.Module:
    return attach_lora(
        model,
        budget=config.budget,
        only_ffn=config.lora.modules == "mlp",
        alpha_over_rank=config.lora.alpha_over_rank,
        num_new_tokens=config.vocabulary.size,
        **options,
    )


def _scaled(row: Method, attach: Callable[..., nn.Module], **texts: Any) -> Method:
    """A method that scales what a finished run of `row` has learnt, and trains nothing."""
    return replace(
        row,
        attach=partial(attach, made_from=row.name),
        size="",
        learning_rate=None,
        uses=("scaling",),
        curve=("scaling.share", (0.2, 0.4, 0.6, 0.8)),
        made_from=row.name,
        new_tokens="none",
        **texts,
    )


NEUTRAL_PAPER = Method(
    name="neutral-paper",
    title="neutral residues, as in the paper",
    paper="Talla et al. 2025, arXiv 2410.02744",
    trains="adapters parallel to feed-forward blocks, each with a gate that reads its input",
    size="adapter width",
    attach=_attach_residues,
    learning_rate=5e-3,
    afterwards=("skip",),
    has_local_loss=True,
    uses=("residues",),
    fixed={"residues.gate_reads": "layer", "residues.head_rank": 0},
)
NEUTRAL = replace(
    NEUTRAL_PAPER,
    name="neutral",
    title="neutral residues",
    paper="ours; after Talla et al. 2025, arXiv 2410.02744",
    trains="adapters parallel to feed-forward blocks and head under one gate; L1 keeps them at 0"
    " on the source",
    fixed={},
    recipe={"training.optimizer": "muon"},
    new_tokens="beside",
)
ADAPTER = replace(
    NEUTRAL_PAPER,
    name="adapter",
    title="gate-less adapter",
    paper="the vanilla adapter of arXiv 2410.02744",
    trains="adapters parallel to feed-forward blocks and head, always on",
    attach=partial(_attach_residues, block_gate="none"),
    learning_rate=1e-2,
    afterwards=("stock",),
    has_local_loss=False,
    uses=tuple(
        f"residues.{key}"
        for key in ("activation", "head_rank", "init", "layers_to_transform", "placement")
    ),
    fixed={},
    new_tokens="beside",
)
LORA = Method(
    name="lora",
    title="LoRA",
    paper="Hu et al. 2021, arXiv 2106.09685 (PEFT's own)",
    trains="low-rank updates of all linear layers",
    size="rank",
    attach=_attach_lora,
    learning_rate=6e-3,
    afterwards=("merge",),
    uses=("lora.modules", "lora.alpha_over_rank"),
    new_tokens="in tables",
)
FINETUNE = Method(
    name="finetune",
    title="full fine-tuning",
    paper="-",
    trains="every weight of the backbone",
    size="",
    attach=lambda model, config: train_everything(model),
    learning_rate=1e-3,
    afterwards=("merge", "stock"),
    keeps_backbone=False,
    new_tokens="in tables",
)

METHODS: tuple[Method, ...] = (
    NEUTRAL,
    NEUTRAL_PAPER,
    replace(
        NEUTRAL_PAPER,
        name="neutral-elu",
        title="neutral residues, ELU gate",
        paper="the first version of arXiv 2410.02744",
        trains="as neutral, with a gate in each layer that is never exactly 0",
        afterwards=(),
        fixed={"residues.block_gate": "elu"},
        recipe={"residues.gate_reads": "layer"},
    ),
    replace(
        NEUTRAL_PAPER,
        name="neutral-sigmoid",
        title="neutral residues, sigmoid gate",
        paper="ours; after arXiv 2410.02744",
        trains="as neutral-paper, with a gate that is never exactly 0",
        afterwards=("stock",),
        fixed={"residues.block_gate": "sigmoid"},
        recipe={
            "residues.gate_start": "half",
            "residues.gate_reads": "layer",
            "residues.head_rank": 0,
        },
    ),
    replace(
        NEUTRAL_PAPER,
        name="neutral-classifier",
        title="neutral residues, gate as classifier",
        paper="the main alternative in arXiv 2410.02744",
        trains="as neutral, with sigmoid gates in layers and cross-entropy: is this a target row",
        afterwards=(),
        fixed={"residues.block_gate": "sigmoid", "residues.local_loss": "cross_entropy"},
        recipe={"residues.local_loss_weight": 0.02, "residues.gate_reads": "layer"},
    ),
    ADAPTER,
    _scaled(
        ADAPTER,
        scale_adapter,
        name="adapter-scaled",
        title="scaled adapter",
        paper="ours",
        trains="nothing: the residues of a trained adapter, times a share",
    ),
    LORA,
    _scaled(
        LORA,
        scale_adapter,
        name="lora-scaled",
        title="scaled LoRA",
        paper="as in PEFT-Arena, arXiv 2605.28819",
        trains="nothing: the updates of a trained LoRA, times a share",
    ),
    replace(
        LORA,
        name="lora-embeddings",
        title="LoRA with embeddings and head",
        paper="the usual recipe for continued pretraining (PEFT's own)",
        trains="as lora, and embeddings and head in full",
        size="rank; copies of embeddings and head come on top, until merged",
        attach=partial(_attach_lora, embeddings=True),
        uses=(*LORA.uses, "lora.embedding_learning_rate_factor"),
        learning_rate_factor=lambda model, config: (
            embedding_weights(model),
            config.lora.embedding_learning_rate_factor,
        ),
    ),
    replace(
        LORA,
        name="disel",
        title="DISeL",
        paper="arXiv 2605.19028",
        trains="as lora, with a sigmoid gate for each rank and token that starts nearly closed",
        attach=partial(_attach_lora, gated=True),
        afterwards=(),
        uses=(*LORA.uses, "lora.gate_learning_rate_factor"),
        fixed={"training.weight_decay": 0.0, "training.optimizer": "adamw"},
        learning_rate_factor=lambda model, config: (
            disel_gates(model),
            config.lora.gate_learning_rate_factor,
        ),
    ),
    replace(
        LORA,
        name="lora-mlp",
        title="LoRA on the MLP",
        trains="low-rank updates of the feed-forward blocks",
        fixed={"lora.modules": "mlp"},
    ),
    replace(
        LORA,
        name="rslora",
        title="rsLoRA",
        paper="Kalajdzievski 2023, arXiv 2312.03732 (PEFT's own), alpha 16",
        trains="as lora, scaled by 1/sqrt(rank)",
        attach=partial(_attach_lora, alpha=16.0, use_rslora=True),
        uses=("lora.modules",),
    ),
    replace(
        LORA,
        name="dora",
        title="DoRA",
        paper="Liu et al. 2024, arXiv 2402.09353 (PEFT's own)",
        trains="as lora, and the length of every output's weights",
        attach=partial(_attach_lora, use_dora=True),
    ),
    replace(
        LORA,
        name="osf",
        title="OSF",
        paper="Nayak et al. 2025, arXiv 2504.07097 (PEFT's own)",
        trains="the smallest singular directions of all linear layers, orthogonal to the rest",
        size="number of directions that train",
        attach=lambda model, config: attach_osf(model, budget=config.budget),
        fixed={"training.optimizer": "adamw"},
        uses=(),
        new_tokens="none",
    ),
    Method(
        name="block-expansion",
        title="block expansion",
        paper="LLaMA Pro, Wu et al. 2024, arXiv 2401.02415",
        trains="copies of whole layers, spread evenly, that do nothing at the start",
        size="number of layers",
        attach=lambda model, config: expand_blocks(model, budget=config.budget),
        learning_rate=2e-3,
        afterwards=("stock",),
        keeps_backbone=False,
    ),
    FINETUNE,
    replace(
        FINETUNE,
        name="finetune-ffn",
        title="fine-tuning of the FFN",
        trains="the feed-forward blocks of the backbone",
        attach=lambda model, config: train_ffns(model),
        new_tokens="none",
    ),
    replace(
        FINETUNE,
        name="ssu",
        title="source-shielded updates",
        paper="SSU, Yamaguchi et al. 2026, arXiv 2512.04844",
        trains="as finetune, without the half of the columns that matters most on source text",
        fixed={"training.weight_decay": 0.0, "training.optimizer": "adamw"},
        calibrate=freeze_source_columns,
    ),
    _scaled(
        FINETUNE,
        scale_finetuned,
        name="wise-ft",
        title="weight averaging",
        paper="WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903",
        trains="nothing: averages backbone and fine-tuned model",
    ),
)


def find_method(name: str) -> Method:
    """The method called `name` in the table, or the `Method` object at "module:NAME". Raises a
    UserError that suggests the nearest name if there is none."""
    if ":" in name:
        return _own_row(name)
    rows = {method.name: method for method in METHODS}
    if name not in rows:
        raise UserError(f"unknown method {name}", do=nearest(name, rows))
    return rows[name]


def _own_row(path: str) -> Method:
    if "" not in sys.path:  # find modules in the working folder, as `python -m` does
        sys.path.insert(0, "")
    try:
        row = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        what = f"cannot import the method {path}"
        raise UserError(what, got=first_line(error), allowed="module:NAME") from error
    if not isinstance(row, Method):
        allowed = "a neutral_residues.methods.table.Method"
        raise UserError(f"{path} is not a method", got=type(row).__name__, allowed=allowed)
    return row
