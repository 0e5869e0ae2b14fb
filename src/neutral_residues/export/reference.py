"""What the live model computes on tokens with open gates, to be compared with the export.

A gate that is trained to close on source text is closed on most random tokens too, and an adapter
with zero output proves nothing about an export. So rows of the user's text, if there is one, and of
random tokens are tried until every layer's residue is not 0 on one of the rows that are kept.
Layers that stay inactive all the same are counted, and the count is shown; if all do, nothing can
be compared, and that is an error.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from neutral_residues.backbone import context_length
from neutral_residues.errors import UserError
from neutral_residues.tuner.beside import modules_beside
from neutral_residues.tuner.embeddings import EmbeddingsLayer
from neutral_residues.tuner.layer import no_skipping, residue_layers

ROW_TOKENS = 32
MAX_ROWS, MIN_ROWS = 4, 2
ROWS_PER_DRAW, MAX_DRAWS = 32, 8


@dataclass(frozen=True)
class ReferenceOutputs:
    """What the live model computes."""

    token_ids_BT: Tensor
    logits_BTV: Tensor
    inputs: dict[str, Tensor]  # name of a block or head -> its input, (B, T, D)
    residues: dict[str, Tensor]  # the same -> what the active adapters added, (B, T, D), head: V
    embeddings_BTE: Tensor | None = None  # where gates read the text
    gates: dict[str, Tensor] = field(default_factory=dict)  # adapter -> its gate then, (B, T, 1)

    @property
    def max_abs_residue_BL(self) -> Tensor:
        """Largest absolute number in the residue of each row and layer, the output head a layer
        too; (B, 0) without adapters."""
        rows = self.token_ids_BT.shape[0]
        by_layer = [r.reshape(rows, -1).abs().amax(dim=1) for r in self.residues.values()]
        return torch.stack(by_layer, dim=1) if by_layer else torch.zeros(rows, 0)

    @property
    def num_inactive(self) -> int:
        """Layers whose residue is 0 on every token, so that they are not compared."""
        return int((self.max_abs_residue_BL.amax(dim=0) == 0).sum())

    def of_residues(self) -> dict[str, Tensor]:
        """By name, what the residues of one adapter are compared by."""
        tensors = {f"inputs.{block}": x for block, x in self.inputs.items()}
        tensors |= {f"residues.{block}": delta for block, delta in self.residues.items()}
        if self.embeddings_BTE is not None:
            (gate_BT1,) = self.gates.values()
            tensors |= {"embeddings": self.embeddings_BTE, "gate": gate_BT1}
        return tensors

    def check_any_active(self) -> None:
        """Raise a UserError if there are adapters and all residues are 0."""
        if self.residues and self.num_inactive == len(self.residues):
            what = "every gate was closed on all tokens that were tried: nothing can be compared"
            length = self.token_ids_BT.shape[1]
            raise UserError(what, do=f"give target text of {length} tokens or more (--text)")


def record_reference(model: PeftModel, text_ids: Sequence[int] = ()) -> ReferenceOutputs:
    """Run the live model on up to `MAX_ROWS` rows that activate as many layers as possible, of
    `text_ids`, which should open the gates, and of random tokens."""
    length = min(ROW_TOKENS, context_length(model.config) or ROW_TOKENS)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    num_rows = min(len(text_ids) // length, ROWS_PER_DRAW)
    kept_BT = torch.tensor(text_ids[: num_rows * length], dtype=torch.long).view(num_rows, length)
    for _ in range(MAX_DRAWS):
        drawn_BT = torch.randint(vocabulary, (ROWS_PER_DRAW, length), generator=generator)
        candidates_BT = torch.cat([kept_BT, drawn_BT])
        active_BL = _outputs(model, candidates_BT).max_abs_residue_BL > 0
        kept_BT = candidates_BT[_covering_rows(active_BL)]
        outputs = _outputs(model, kept_BT)
        if outputs.num_inactive == 0:
            break
    return outputs


def _covering_rows(active_BL: Tensor) -> list[int]:
    """Rows that together activate as many layers as `MAX_ROWS` rows chosen greedily can."""
    chosen: list[int] = []
    missing_L = torch.ones(active_BL.shape[1], dtype=torch.bool)
    while len(chosen) < MAX_ROWS and (bool(missing_L.any()) or len(chosen) < MIN_ROWS):
        gains_B = (active_BL & missing_L).sum(dim=1)
        gains_B[chosen] = -1
        row = int(gains_B.argmax())
        if gains_B[row] <= 0 and len(chosen) >= MIN_ROWS:
            break
        chosen.append(row)
        missing_L &= ~active_BL[row]
    return chosen


@torch.no_grad()
def _outputs(model: PeftModel, token_ids_BT: Tensor) -> ReferenceOutputs:
    layers = residue_layers(model.get_base_model())
    layers = {name: layer for name, layer in layers.items() if layer.active_names()}
    inputs: dict[nn.Module, Tensor] = {}

    def keep_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[layer] = (args[0] if args else kwargs["hidden_states"]).clone()

    with ExitStack() as hooks, no_skipping(model):  # as the exported code
        for layer in layers.values():
            hooks.callback(layer.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
        logits_BTV = model(input_ids=token_ids_BT).logits
    residues = {}
    for name, layer in layers.items():
        x, active = inputs[layer], layer.active_names()
        deltas = [layer.residue(x, adapter).delta for adapter in active]
        residues[name] = torch.stack(deltas).sum(dim=0)
    by_name = {name: inputs[layer] for name, layer in layers.items()}
    read = _read(model, token_ids_BT)
    return ReferenceOutputs(token_ids_BT, logits_BTV, by_name, residues, *read)


def _read(model: PeftModel, token_ids_BT: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The embeddings, where gates read the text, and these gates at the model's last pass."""
    places = [it for it in modules_beside(model).values() if isinstance(it, EmbeddingsLayer)]
    place = next(iter(places), None)
    if place is None or not place.active_names():
        return None, {}
    return place.base_layer(token_ids_BT), {name: g.gate for name, g in place.gates.items()}
