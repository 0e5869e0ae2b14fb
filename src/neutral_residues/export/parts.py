"""An extended model taken apart, without PEFT: the backbone, and the adapters of its blocks, head
and embeddings.

The writers of all formats work from these parts.
"""

import copy
from dataclasses import dataclass
from functools import cached_property

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from neutral_residues.config.choices import BlockGate
from neutral_residues.errors import UserError, first_line
from neutral_residues.tuner.blocks import find_blocks, find_embeddings, find_head, find_layers
from neutral_residues.tuner.embeddings import BesideEmbeddings, embeddings_layer
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp
from neutral_residues.tuner.head import GatedHead
from neutral_residues.tuner.layer import residue_layers
from neutral_residues.tuner.neutral import GatedAdapter
from neutral_residues.tuner.new_tokens import NewTokens
from neutral_residues.tuner.reader import TokenReader
from neutral_residues.tuner.thresholds import Thresholds


@dataclass(frozen=True)
class Adapter:
    """One adapter."""

    name: str  # as in PEFT
    kind: BlockGate
    activation: str  # by its name in Transformers
    width: int  # R
    by_block: dict[str, GatedAdapter]  # full name of a block in the backbone -> its part there
    head: GatedHead | None = None  # its part at the output head
    reader: TokenReader | None = None  # its one gate, if that reads the text
    tokens: NewTokens | None = None  # those of its own, if it has any
    thresholds: Thresholds | None = None  # on its gates, if it is calibrated

    @property
    def first(self) -> GatedAdapter:
        return next(iter(self.by_block.values()))

    @property
    def width_in(self) -> int:
        """D."""
        return self.first.gate.in_features

    @property
    def has_bias(self) -> bool:
        """Whether the gates of its parts have a b; they have none under a reader."""
        return self.first.block_gate is not None and self.first.block_gate.bias is not None

    @torch.no_grad()
    def at(self, block: str) -> GatedAdapter:
        """What runs parallel to that block, or a module of the same shape that adds 0."""
        if block in self.by_block:
            return self.by_block[block]
        zero = copy.deepcopy(self.first)
        for parameter in zero.parameters():
            parameter.zero_()
        if zero.block_gate is not None:  # llama.cpp's sigmoid of exactly 0 is 0/0
            zero.block_gate.weight.fill_(1.0)
        return zero


@dataclass(frozen=True)
class Parts:
    """A backbone, without any trace of PEFT, and the adapters that were active."""

    backbone: PreTrainedModel
    adapters: tuple[Adapter, ...]
    merged: bool = False  # updates were added to the backbone's matrices instead
    # If set: at each token only the adapter with the strongest gate over the last tokens, this
    # many, is active.
    strongest_over: int | None = None

    @property
    def model_type(self) -> str:
        return str(self.backbone.config.model_type)

    @property
    def has_head(self) -> bool:
        """Whether an adapter has a residue on the output head."""
        return any(adapter.head is not None for adapter in self.adapters)

    @property
    def has_reader(self) -> bool:
        """Whether the gate of an adapter reads the text."""
        return any(adapter.reader is not None for adapter in self.adapters)

    @property
    def promises(self) -> list[str]:
        """What calibrated adapters promise."""
        found = [adapter.thresholds for adapter in self.adapters]
        return [it.promise for it in found if it is not None and it.promise]

    @property
    def new_ids(self) -> range:
        """The ids V to V + N - 1 of the new tokens of the one adapter that may have some."""
        first = len(self.backbone.get_input_embeddings().weight)
        number = sum(adapter.tokens.num_tokens for adapter in self.adapters if adapter.tokens)
        return range(first, first + number)

    @property
    def needs_embeddings(self) -> bool:
        """Whether a gate reads the input embeddings, or new tokens are beside them."""
        return self.has_reader or bool(self.new_ids)

    @cached_property
    def embeddings_name(self) -> str:
        """Full name of the input embeddings that a gate reads, or new tokens are beside."""
        found = find_embeddings(self.backbone)
        assert found is not None
        return found[0]

    @cached_property
    def head_name(self) -> str:
        """Full name of the output head."""
        found = find_head(self.backbone)
        assert found is not None
        return found[0]

    @cached_property
    def ffns(self) -> dict[str, GatedMLP | None]:
        """Full name of each feed-forward block, in layer order -> its parts if it is a gated MLP;
        empty where the layers have no such block."""
        try:
            blocks = find_blocks(self.backbone, "ffn")
        except UserError:
            return {}
        return {name: as_gated_mlp(block) for name, block in blocks.items()}

    def layer_numbers(self, adapter: Adapter) -> dict[str, int]:
        """Name of each block of the adapter inside the layers -> its layer, counted from 0."""
        layers = list(find_layers(self.backbone))
        return {
            block: number
            for block in adapter.by_block
            for number, layer in enumerate(layers)
            if block.startswith(f"{layer}.")
        }

    def first_non_ffn_target(self, adapter: Adapter) -> str | None:
        """The first block of the adapter that is not a feed-forward block."""
        return next((block for block in adapter.by_block if block not in self.ffns), None)


def extract_parts(model: PeftModel) -> Parts:
    """The parts of `model`, which is not usable afterwards: nothing is copied.

    Updates of other methods are merged; a UserError where PEFT cannot.
    """
    layers = residue_layers(model.get_base_model())
    if not layers:
        return Parts(_merged(model), (), merged=True)
    adapters, embeddings = [], _beside_embeddings(model)
    for name in model.base_model.active_adapters:
        config = model.peft_config[name]
        mine = {n: it.adapter(name) for n, it in layers.items() if name in it.known_adapters()}
        by_block = {n: part for n, part in mine.items() if isinstance(part, GatedAdapter)}
        head = next((part for part in mine.values() if isinstance(part, GatedHead)), None)
        kind, activation, width = config.block_gate, config.activation, config.width
        beside = embeddings.get(name, BesideEmbeddings(None, None))
        parts = by_block, head, beside.reader, beside.tokens
        saved = config.thresholds
        thresholds = None if saved is None else Thresholds.of(saved)
        adapters.append(Adapter(name, kind, activation, width, *parts, thresholds))
    place = embeddings_layer(model)
    over = place.strongest_over if place and len(adapters) > 1 else None
    return Parts(_untied(model.unload()), tuple(adapters), strongest_over=over)


def _beside_embeddings(model: PeftModel) -> dict[str, BesideEmbeddings]:
    """What each extension has there, by its name."""
    layer = embeddings_layer(model)
    return {name: layer.beside(name) for name in layer.known_adapters()} if layer else {}


def _merged(model: PeftModel) -> PreTrainedModel:
    try:
        return _untied(model.merge_and_unload())
    except (AttributeError, NotImplementedError, ValueError) as error:  # it depends on the method
        what = f"PEFT cannot merge {model.peft_config[model.active_adapter].peft_type.value}"
        raise UserError(what, got=first_line(error), do="serve it with PEFT") from error


def _untied(backbone: PreTrainedModel) -> PreTrainedModel:
    """An output matrix that was trained apart from the embeddings is no longer tied to them."""
    head, embeddings = backbone.get_output_embeddings(), backbone.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        backbone.config.tie_word_embeddings = False
    return backbone.eval()
