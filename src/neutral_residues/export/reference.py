"""Reference outputs of the original model on tokens with open gates, to compare an export with.

Gates that are trained to close on source text are closed on most random tokens too, and an adapter
with zero output says nothing about an export. So rows of the user's text, if given, and of random
tokens are tried until every layer has a nonzero residue on a row that is kept. If the extension has
new tokens, some of them must follow an open gate and, if gates can be exactly 0, some a closed one.
Layers that are still inactive are counted and reported; if all are, nothing can be compared, which
is an error.
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
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.layer import no_skipping, residue_layers

ROW_TOKENS = 32
MAX_ROWS, MIN_ROWS = 4, 2
ROWS_PER_DRAW, MAX_DRAWS = 32, 8


@dataclass(frozen=True)
class NewTokenOutputs:
    """Reference outputs for the extension's new tokens."""

    first_id: int  # id of the first new token
    embeddings_NE: Tensor
    head_inputs_BTD: Tensor  # inputs of the output head
    logits_BTN: Tensor  # before soft caps and scales
    can_be_impossible: bool  # the gate can be exactly 0, so that logits of new tokens are -inf

    @property
    def impossible_BT(self) -> Tensor:
        """Tokens after which the logits of all new tokens are -inf (bool)."""
        return self.logits_BTN.isinf().all(dim=-1)

    def covered_BL(self, token_ids_BT: Tensor) -> Tensor:
        """Whether each row has new tokens where they are possible and, if the gate can be 0, where
        they are impossible: bool (B, 1 or 2)."""
        is_new_BT = token_ids_BT[:, 1:] >= self.first_id
        impossible_BT = self.impossible_BT[:, :-1]
        covered = [is_new_BT & ~impossible_BT]
        if self.can_be_impossible:
            covered.append(is_new_BT & impossible_BT)
        return torch.stack([it.any(dim=1) for it in covered], dim=1)


@dataclass(frozen=True)
class ReferenceOutputs:
    """Reference outputs of the original model on a few rows."""

    token_ids_BT: Tensor
    logits_BTV: Tensor
    inputs: dict[str, Tensor]  # name of a block or head -> its input, (B, T, D)
    residues: dict[str, Tensor]  # same names -> sum of its residues, (B, T, D), head: (B, T, V)
    embeddings_BTE: Tensor | None = None  # input embeddings, if gates read tokens
    gates: dict[str, Tensor] = field(default_factory=dict)  # adapter -> (B, T, 1), likewise
    new_tokens: NewTokenOutputs | None = None

    @property
    def max_abs_residue_BL(self) -> Tensor:
        """Largest absolute number in the residue of each row and layer (the output head is one);
        (B, 0) without adapters."""
        rows = self.token_ids_BT.shape[0]
        by_layer = [r.reshape(rows, -1).abs().amax(dim=1) for r in self.residues.values()]
        return torch.stack(by_layer, dim=1) if by_layer else torch.zeros(rows, 0)

    @property
    def num_inactive(self) -> int:
        """Number of layers whose residue is 0 on every token, so that they cannot be compared."""
        return int((self.max_abs_residue_BL.amax(dim=0) == 0).sum())

    @property
    def covered_BL(self) -> Tensor:
        """What each row allows to compare (bool): a column for each layer, True if its residue is
        not 0, followed by those of `NewTokenOutputs.covered_BL`."""
        active_BL = self.max_abs_residue_BL > 0
        if self.new_tokens is None:
            return active_BL
        return torch.cat([active_BL, self.new_tokens.covered_BL(self.token_ids_BT)], dim=1)

    @property
    def impossible(self) -> tuple[int, int] | None:
        """Number of tokens after which new tokens are impossible, and number of all tokens; None
        if new tokens are always possible, or there are none."""
        if self.new_tokens is None or not self.new_tokens.can_be_impossible:
            return None
        impossible_BT = self.new_tokens.impossible_BT
        return int(impossible_BT.sum()), impossible_BT.numel()

    def of_residues(self) -> dict[str, Tensor]:
        """The tensors that `verify_child.compare_residues` needs, by name; for one adapter."""
        tensors = {f"inputs.{block}": x for block, x in self.inputs.items()}
        tensors |= {f"residues.{block}": delta for block, delta in self.residues.items()}
        if self.gates:
            assert self.embeddings_BTE is not None
            (gate_BT1,) = self.gates.values()
            tensors |= {"embeddings": self.embeddings_BTE, "gate": gate_BT1}
        if (new := self.new_tokens) is not None:
            tensors |= {"new_tokens.embeddings": new.embeddings_NE}
            tensors |= {"new_tokens.inputs": new.head_inputs_BTD}
            tensors |= {"new_tokens.logits": new.logits_BTN}
        return tensors

    def check_any_active(self) -> None:
        """Raise a UserError if there are adapters and all residues are 0."""
        if self.residues and self.num_inactive == len(self.residues):
            what = "every gate was closed on all tokens that were tried: nothing can be compared"
            length = self.token_ids_BT.shape[1]
            raise UserError(what, do=f"give target text of {length} tokens or more (--text)")


def record_reference(model: PeftModel, text_ids: Sequence[int] = ()) -> ReferenceOutputs:
    """Run the original model on up to `MAX_ROWS` rows that activate as many layers as possible.

    Args:
        text_ids: tokens of a text that should open the gates; rows of random tokens, new tokens
            among them, are tried as well.
    """
    length = min(ROW_TOKENS, context_length(model.config) or ROW_TOKENS)
    generator = torch.Generator().manual_seed(0)
    num_rows = min(len(text_ids) // length, ROWS_PER_DRAW)
    kept_BT = torch.tensor(text_ids[: num_rows * length], dtype=torch.long).view(num_rows, length)
    for _ in range(MAX_DRAWS):
        candidates_BT = torch.cat([kept_BT, _random_rows(model, length, generator)])
        kept_BT = candidates_BT[_covering_rows(_outputs(model, candidates_BT).covered_BL)]
        outputs = _outputs(model, kept_BT)
        if outputs.covered_BL.any(dim=0).all():
            break
    return outputs


def _random_rows(model: PeftModel, length: int, generator: torch.Generator) -> Tensor:
    """Rows (B, T) of random tokens; the share of new tokens, if there are any, rises from 0 in the
    first row to 1 in the last."""
    shape = ROWS_PER_DRAW, length
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    drawn_BT = torch.randint(vocabulary, shape, generator=generator)
    place = embeddings_layer(model)
    if place is None or not place.active_tokens():
        return drawn_BT
    first, end = place.first_new_id, place.vocabulary_size
    new_BT = torch.randint(first, end, shape, generator=generator)
    share_B1 = torch.linspace(0, 1, ROWS_PER_DRAW)[:, None]
    return new_BT.where(torch.rand(shape, generator=generator) < share_B1, drawn_BT)


def _covering_rows(covered_BL: Tensor) -> list[int]:
    """Indices of `MIN_ROWS` to `MAX_ROWS` rows, chosen greedily to cover as many columns as
    possible."""
    chosen: list[int] = []
    missing_L = torch.ones(covered_BL.shape[1], dtype=torch.bool)
    while len(chosen) < MAX_ROWS and (bool(missing_L.any()) or len(chosen) < MIN_ROWS):
        gains_B = (covered_BL & missing_L).sum(dim=1)
        gains_B[chosen] = -1
        row = int(gains_B.argmax())
        if gains_B[row] <= 0 and len(chosen) >= MIN_ROWS:
            break
        chosen.append(row)
        missing_L &= ~covered_BL[row]
    return chosen


@torch.no_grad()
def _outputs(model: PeftModel, token_ids_BT: Tensor) -> ReferenceOutputs:
    layers = residue_layers(model.get_base_model())
    layers = {name: layer for name, layer in layers.items() if layer.active_names()}
    inputs: dict[nn.Module, Tensor] = {}
    head = model.get_base_model().get_output_embeddings()

    def keep_input(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs[layer] = (args[0] if args else kwargs["hidden_states"]).clone()

    with ExitStack() as hooks, no_skipping(model):  # the exported code does not skip tokens either
        for layer in {*layers.values(), head} - {None}:
            hooks.callback(layer.register_forward_pre_hook(keep_input, with_kwargs=True).remove)
        logits_BTV = model(input_ids=token_ids_BT).logits
    residues = {}
    for name, layer in layers.items():
        x, active = inputs[layer], layer.active_names()
        deltas = [layer.residue(x, adapter).delta for adapter in active]
        residues[name] = torch.stack(deltas).sum(dim=0)
    by_name = {name: inputs[layer] for name, layer in layers.items()}
    read = _read(model, token_ids_BT)
    new_tokens = _new_tokens(model, inputs.get(head))
    return ReferenceOutputs(token_ids_BT, logits_BTV, by_name, residues, *read, new_tokens)


def _read(model: PeftModel, token_ids_BT: Tensor) -> tuple[Tensor | None, dict[str, Tensor]]:
    """If gates read tokens, the input embeddings and the gates of the model's last pass."""
    place = embeddings_layer(model)
    if place is None or not place.active_names():
        return None, {}
    return place.embed(token_ids_BT), {name: g.gate for name, g in place.gates.items()}


def _new_tokens(model: PeftModel, head_inputs_BTD: Tensor | None) -> NewTokenOutputs | None:
    """Outputs for the new tokens of the active extension in the model's last pass; None if it has
    no new tokens."""
    place = embeddings_layer(model)
    if place is None or not (active := place.active_tokens()):
        return None
    assert head_inputs_BTD is not None
    ((name, tokens),) = active.items()
    gate = place.gate_at(name, head_inputs_BTD) if place.reader(name) is not None else None
    return NewTokenOutputs(
        place.first_new_id,
        tokens.embed(torch.arange(tokens.num_tokens)),
        head_inputs_BTD,
        tokens.logits(head_inputs_BTD, gate),
        place.can_forbid_tokens,
    )
