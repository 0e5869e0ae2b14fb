"""The PEFT configuration of neutral residues; values are checked when it is created."""

import enum
import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from neutral_residues.config.choices import (
    BlockGate,
    GateReads,
    GateStart,
    Init,
    Placement,
    check_choices,
)
from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import activation_module
from neutral_residues.tuner.thresholds import Thresholds


class NeutralResiduesPeftType(str, enum.Enum):  # noqa: UP042 - PEFT looks types up by the hash of a str enum
    """A type for PEFT's registry. PEFT's enum cannot be extended, but a string enum with name ==
    value is found in it."""

    NEUTRAL_RESIDUES = "NEUTRAL_RESIDUES"


PEFT_TYPE = NeutralResiduesPeftType.NEUTRAL_RESIDUES


@dataclass
class NeutralResiduesConfig(PeftConfig):
    """Settings of neutral residues, the PEFT config for `get_peft_model`. Paper: section 3.

    Args:
        budget: number of new weights as a share of the backbone's weights, embeddings included; the
            paper has 0.20.
        width: adapter width R; overrides `budget`.
        head_rank: rank K of the residue on the output head (`head.py`), part of the budget; 0 for
            none. Default: 64, or what a quarter of the new weights allows; 0 without an output
            head.
        block_gate: "relu" (the paper), "elu", "sigmoid", or "none" for a gate-less adapter.
        activation: activation inside the adapter, by its name in Transformers; default: that of
            the backbone.
        init: "paper" (variance 1/(D L)) or "usual" (2/D) for the inner projections.
        gate_start: "open" (w = 0, b = 1: every token starts with g = 1), "random" (no b), or
            "half" (w = 0, no b: g = 1/2), which only a sigmoid gate can; a gate that reads tokens
            starts open.
        new_tokens: number N of new tokens, which are part of the extension and of the budget and
            have the ids after the backbone's (`new_tokens.py`). `neutral extend` with
            `vocabulary.size` creates them together with their tokenizer. The gate, if there is one,
            must read tokens.
        new_tokens_rank: rank K of their table; default: the width of the embeddings, or what a
            quarter of the new weights allows.
        gate_reads: "tokens" (one gate for all layers and the head, which reads the last 16 tokens,
            see `reader.py`) or "layer" (the paper: each layer has a gate that reads the layer's
            input).
        placement: "ffn" (the paper) or "attention": the block that the adapter runs parallel to.
        first_layer: the first layer with an adapter. Default: 0, or 1 if `gate_reads` is "layer"
            and the model has four or more layers: in the first layer a gate sees too little of the
            context to close.
        target_modules: names of the feed-forward modules; by default they are found.
        exclude_modules: names of modules without an adapter.
        layers_to_transform: layers with an adapter, counted from 0 among those that have a block
            for it; default: all from `first_layer` on.
        layers_pattern: name of the module list of the layers, if PEFT does not find it.
        modules_to_save: other modules to train in full and save, for example ["lm_head"].
        thresholds: thresholds on the gates of a trained extension (`thresholds.py`); set by
            `neutral calibrate`. None leaves the gates as they were trained.
        num_new_weights, num_backbone_weights, backbone: set when the extension is attached, saved
            with it, and checked when it is loaded (`backbone`: width, depth, vocabulary).

    Raises:
        UserError: for an invalid value, or a setting without effect.
    """

    budget: float = 0.20
    width: int | None = None
    head_rank: int | None = None
    new_tokens: int = 0
    new_tokens_rank: int | None = None
    block_gate: BlockGate = "relu"
    activation: str | None = None
    init: Init = "usual"
    gate_start: GateStart = "open"
    gate_reads: GateReads = "tokens"
    placement: Placement = "ffn"
    first_layer: int | None = None
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    thresholds: dict[str, Any] | None = None
    num_new_weights: int | None = None
    num_backbone_weights: int | None = None
    backbone: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        # Not a field, so it is not saved. A config has this number only if it was attached before,
        # so its weights are in a checkpoint.
        self.from_checkpoint = self.num_new_weights is not None
        # Not fields either: the module names of output head and embeddings in this model; "" if the
        # extension adds nothing there.
        self.head = self.embeddings = ""
        names = ("block_gate", "init", "gate_start", "gate_reads", "placement")
        check_choices(**{name: getattr(self, name) for name in names})
        if self.width is not None and (type(self.width) is not int or self.width < 1):
            raise UserError("width", got=self.width, allowed="a whole number, 1 or more")
        for name, least in (("head_rank", 0), ("new_tokens", 0), ("new_tokens_rank", 1)):
            number = getattr(self, name)
            if number is not None and (type(number) is not int or number < least):
                raise UserError(name, got=number, allowed=f"a whole number, {least} or more")
        self._check_new_tokens()
        if type(self.budget) not in (int, float) or not 0 < self.budget < math.inf:
            raise UserError("budget", got=self.budget, allowed="a share above 0, for example 0.20")
        if self.activation is not None:
            activation_module(self.activation)
        self._check_layer_choice()
        if self.thresholds is not None:
            self.thresholds = Thresholds.of(self.thresholds).to_dict()
            if self.block_gate != "relu":
                what = "thresholds need a gate that can be exactly 0: block_gate relu"
                raise UserError(what, got=self.block_gate, do="set thresholds to null")
            if not self.from_checkpoint:
                what = "thresholds belong to trained weights, and these are new"
                raise UserError(what, do="set thresholds to None")

    @property
    def has_reader(self) -> bool:
        """Whether the extension has one gate that reads tokens (a `TokenReader`)."""
        return self.gate_reads == "tokens" and self.block_gate != "none"

    @property
    def has_embeddings(self) -> bool:
        """Whether the extension adds a module at the embeddings: a reader or new tokens."""
        return self.has_reader or self.new_tokens > 0

    def _check_new_tokens(self) -> None:
        if self.new_tokens_rank is not None and not self.new_tokens:
            what = "new_tokens_rank has no effect without new_tokens"
            raise UserError(what, got=self.new_tokens_rank, do="set new_tokens, or remove it")
        fits = self.block_gate == "none" or (
            self.block_gate in ("relu", "sigmoid") and self.gate_reads == "tokens"
        )
        if self.new_tokens and not fits:
            what = "new_tokens need one relu or sigmoid gate for the whole extension, or no gate"
            got = f"gate_reads {self.gate_reads}, block_gate {self.block_gate}"
            raise UserError(what, got=got, do="set gate_reads to tokens and block_gate to relu")

    def _check_layer_choice(self) -> None:
        """Raise a UserError for settings without effect, which PEFT would silently ignore."""
        numbered = self.layers_to_transform is not None
        if isinstance(self.target_modules, str) and numbered:
            raise UserError(
                "layers_to_transform has no effect with a regular expression in target_modules",
                do="put the layer numbers into the expression, or give target_modules as a list",
            )
        if self.layers_pattern is not None and not numbered:
            what = "layers_pattern has no effect without layers_to_transform"
            raise UserError(what, do="set both, or neither")
        if self.placement != "ffn" and self.target_modules is not None and not self.from_checkpoint:
            raise UserError("placement has no effect with target_modules", do="set one of them")
        if self.first_layer is not None and numbered:
            what = "first_layer has no effect with layers_to_transform"
            raise UserError(what, do="set one of them")

    def choose_layers(self, blocks: list[str]) -> list[str]:
        """The names in `blocks`, one per layer, that get an adapter. Raises a UserError if there
        are none, or a chosen layer does not exist."""
        if self.layers_to_transform is None:
            if self.first_layer is None:
                is_own = self.block_gate != "none" and self.gate_reads == "layer"
                self.first_layer = 1 if is_own and len(blocks) >= 4 else 0
            setting, numbers = "first_layer", list(range(self.first_layer, len(blocks)))
        else:
            chosen = self.layers_to_transform
            numbers = [chosen] if isinstance(chosen, int) else list(chosen)
            setting = "layers_to_transform"
        if not numbers or not all(0 <= number < len(blocks) for number in numbers):
            allowed = f"numbers from 0 to {len(blocks) - 1}"
            raise UserError(setting, got=getattr(self, setting), allowed=allowed)
        return [blocks[number] for number in numbers]
