"""An extended model split into its parts, without PEFT: the backbone, and the adapters at its
blocks, head and embeddings. The writers of all formats work from these parts."""

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
    """All parts of one adapter."""

    name: str  # adapter name in PEFT
    kind: BlockGate
    activation: str  # by its name in Transformers
    width: int  # R
    by_block: dict[str, GatedAdapter]  # full name of a block in the backbone -> its adapter there
    head: GatedHead | None = None  # residue on the output head
    reader: TokenReader | None = None  # the gate that reads tokens, if it has that
    tokens: NewTokens | None = None  # new tokens
    thresholds: Thresholds | None = None  # of a calibrated extension

    @property
    def first(self) -> GatedAdapter:
        return next(iter(self.by_block.values()))

    @property
    def width_in(self) -> int:
        """D, the width of the blocks' inputs."""
        return self.first.gate.in_features

    @property
    def has_bias(self) -> bool:
        """Whether its block gates have a bias; False if it has none (`reader` is its gate)."""
        return self.first.block_gate is not None and self.first.block_gate.bias is not None

    @torch.no_grad()
    def at(self, block: str) -> GatedAdapter:
        """The adapter parallel to `block`, or a module of the same shape with output 0."""
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
    """A backbone without PEFT's wrappers, and the adapters that were active on it."""

    backbone: PreTrainedModel
    adapters: tuple[Adapter, ...]
    merged: bool = False  # there are no adapters: updates were merged into the backbone
    # If set, at each token only that adapter is active whose gate is largest in the sum over this
    # many last tokens.
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
        """Whether an adapter has a gate that reads tokens."""
        return any(adapter.reader is not None for adapter in self.adapters)

    @property
    def promises(self) -> list[str]:
        """Promises of the calibrated adapters, as sentences."""
        found = [adapter.thresholds for adapter in self.adapters]
        return [it.promise for it in found if it is not None and it.promise]

    @property
    def new_ids(self) -> range:
        """Ids of the new tokens; empty without any. At most one adapter has new tokens."""
        first = len(self.backbone.get_input_embeddings().weight)
        number = sum(adapter.tokens.num_tokens for adapter in self.adapters if adapter.tokens)
        return range(first, first + number)

    @property
    def needs_embeddings(self) -> bool:
        """Whether the exported code needs the input embeddings: for a gate that reads tokens, or
        for new tokens."""
        return self.has_reader or bool(self.new_ids)

    @cached_property
    def embeddings_name(self) -> str:
        """Full name of the input embeddings."""
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
        """Full name of each feed-forward block, in layer order -> its parts, or None if it is not a
        plain gated MLP; empty if the layers have no such block."""
        try:
            blocks = find_blocks(self.backbone, "ffn")
        except UserError:
            return {}
        return {name: as_gated_mlp(block) for name, block in blocks.items()}

    def layer_numbers(self, adapter: Adapter) -> dict[str, int]:
        """Name of each block with an adapter -> number of its layer, counted from 0."""
        layers = list(find_layers(self.backbone))
        return {
            block: number
            for block in adapter.by_block
            for number, layer in enumerate(layers)
            if block.startswith(f"{layer}.")
        }

    def first_non_ffn_target(self, adapter: Adapter) -> str | None:
        """Name of the first block with an adapter that is not a feed-forward block, or None."""
        return next((block for block in adapter.by_block if block not in self.ffns), None)


def extract_parts(model: PeftModel) -> Parts:
    """Split `model` into its parts. Nothing is copied, so `model` is not usable afterwards.

    Adapters of PEFT's other methods are merged into the backbone; a UserError if PEFT cannot merge
    them.
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
    """Gate that reads tokens and new tokens of each extension, by adapter name."""
    layer = embeddings_layer(model)
    return {name: layer.beside(name) for name in layer.known_adapters()} if layer else {}


def _merged(model: PeftModel) -> PreTrainedModel:
    try:
        return _untied(model.merge_and_unload())
    # PEFT's methods raise different errors.
    except (AttributeError, NotImplementedError, ValueError) as error:
        what = f"PEFT cannot merge {model.peft_config[model.active_adapter].peft_type.value}"
        raise UserError(what, got=first_line(error), do="serve it with PEFT") from error


def _untied(backbone: PreTrainedModel) -> PreTrainedModel:
    """The backbone in eval mode. If its head no longer shares the embeddings' weight, because it
    was trained apart, the configuration says so too."""
    head, embeddings = backbone.get_output_embeddings(), backbone.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        backbone.config.tie_word_embeddings = False
    return backbone.eval()
