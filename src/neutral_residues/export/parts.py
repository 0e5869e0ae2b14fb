"""An extended model taken apart: the plain backbone, and the weights of the adapters that ran
beside its blocks.

The writers of all formats work from these parts and meet neither PEFT nor the tuner.
"""

from dataclasses import dataclass

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from neutral_residues.config.choices import BlockGate
from neutral_residues.errors import UserError, first_line
from neutral_residues.tuner.blocks import find_blocks, find_layers
from neutral_residues.tuner.layer import NeutralResiduesLayer, residue_layers
from neutral_residues.tuner.neutral import GatedAdapter


@dataclass(frozen=True)
class Adapter:
    """One adapter.

    Attributes:
        name: as in PEFT.
        block_gate: kind of its gate.
        activation: by its name in Transformers.
        width: R.
        beside: full name of a block in the backbone -> the adapter that runs parallel to it.
    """

    name: str
    block_gate: BlockGate
    activation: str
    width: int
    beside: dict[str, GatedAdapter]

    @property
    def has_bias(self) -> bool:
        return any(
            a.block_gate is not None and a.block_gate.bias is not None for a in self.beside.values()
        )


@dataclass(frozen=True)
class Parts:
    """A backbone and the adapters whose residues are added to its blocks.

    Attributes:
        backbone: without any trace of PEFT.
        adapters: those that were active; none where everything was merged into the backbone.
        merged: its matrices are not the old ones, because updates were added to them.
    """

    backbone: PreTrainedModel
    adapters: tuple[Adapter, ...]
    merged: bool = False

    @property
    def model_type(self) -> str:
        return str(self.backbone.config.model_type)

    @property
    def ffns(self) -> dict[str, nn.Module]:
        """The feed-forward blocks by full name, in layer order; empty where the layers have
        none."""
        try:
            return find_blocks(self.backbone, "ffn")
        except UserError:
            return {}

    def layer_numbers(self, adapter: Adapter) -> dict[str, int]:
        """Name of a block that the adapter runs beside -> its layer, counted from 0; blocks outside
        are left out."""
        layers = list(find_layers(self.backbone))
        return {
            block: number
            for block in adapter.beside
            for number, layer in enumerate(layers)
            if block.startswith(f"{layer}.")
        }

    def strange_place(self, adapter: Adapter) -> str | None:
        """The first block beside which the adapter runs that is no feed-forward block."""
        ffns = self.ffns
        return next((block for block in adapter.beside if block not in ffns), None)


def take_apart(model: PeftModel) -> Parts:
    """The parts of `model`, which is not usable afterwards: nothing is copied. Low-rank updates are
    merged.

    Raises:
        UserError: for another method of PEFT's that cannot be merged.
    """
    layers = residue_layers(model.get_base_model())
    if not layers:
        return Parts(_merged(model), (), merged=True)
    adapters = tuple(_adapter(model, name, layers) for name in model.base_model.active_adapters)
    return Parts(_settled(model.unload()), adapters)


def _merged(model: PeftModel) -> PreTrainedModel:
    try:
        return _settled(model.merge_and_unload())
    except (
        AttributeError,
        NotImplementedError,
        ValueError,
    ) as error:  # what PEFT raises depends on the method
        kind = model.peft_config[model.active_adapter].peft_type.value
        raise UserError(
            f"PEFT cannot merge {kind}", got=first_line(error), do="serve it with PEFT"
        ) from error


def _adapter(model: PeftModel, name: str, layers: dict[str, NeutralResiduesLayer]) -> Adapter:
    config = model.peft_config[name]
    beside = {
        block: layer.adapter(name)
        for block, layer in layers.items()
        if name in layer.known_adapters()
    }
    return Adapter(name, config.block_gate, config.activation, config.width, beside)


def _settled(backbone: PreTrainedModel) -> PreTrainedModel:
    """An output matrix that was trained apart from the embeddings it was tied to is no longer
    tied."""
    head, embeddings = backbone.get_output_embeddings(), backbone.get_input_embeddings()
    if head is not None and head.weight is not embeddings.weight:
        backbone.config.tie_word_embeddings = False
    return backbone.eval()
