"""One module of the backbone, a block or the output head, with the residues parallel to it: what a
forward pass computes, and for which tokens.

    output = base_layer(x) + sum over active adapters of their residue at x

The plain path computes every adapter for every token; it is what trains, what a `ResidueHook`
observes and what compiles. Two things make it shorter in inference, with the same result:

- *routing*: with `adapter_names` (PEFT's argument) each row of a batch names its one adapter, or
  none (`routing.py`);
- *skipping*: where the ReLU gate is 0 nothing is added, so those tokens are left out
  (`skipping.py`). To know which, the host must read the gates; on a GPU that would make it wait in
  every layer, so there all tokens are computed.

No maths here: `neutral.py` and `head.py` hold it. No loss either: residues are reported to a
`ResidueHook`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.beside import ModuleBeside, modules_beside
from neutral_residues.tuner.embeddings import BesideEmbeddings, EmbeddingsLayer
from neutral_residues.tuner.frozen_mlp import can_train_frozen, frozen_forward
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp
from neutral_residues.tuner.head import GatedHead, HeadResidue
from neutral_residues.tuner.neutral import Gate, GatedAdapter, Residue
from neutral_residues.tuner.routing import temporarily
from neutral_residues.tuner.skipping import active_token_indices, can_skip

AnyResidue = Residue | HeadResidue
AnyAdapter = GatedAdapter | GatedHead

HEAD: Literal["head"] = "head"
"""The output head's place among the numbers of the layers."""


class ResidueHook(Protocol):
    """Called with every residue that a model computes (by the local loss, the evaluation)."""

    def on_residue(
        self, layer: "NeutralResiduesLayer", residue: AnyResidue, base_output: Tensor, name: str
    ) -> None:
        """`base_output` (..., D) is what the block of the backbone itself puts out; logits may hold
        other residues already. `name` is the adapter's."""


class NeutralResiduesLayer(ModuleBeside):
    """A block of the backbone, or its output head, and the adapters parallel to it; active ones are
    summed."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.residue_hook: ResidueHook | None = None
        self.skipping = True
        self._embeddings: tuple[EmbeddingsLayer, ...] = ()  # not a part of this module

    def connect(self, embeddings: EmbeddingsLayer) -> None:
        """Where gates that read the text come from."""
        self._embeddings = (embeddings,)

    @property
    def embeddings(self) -> EmbeddingsLayer | None:
        """Where gates that read the text come from, if there are any."""
        return self._embeddings[0] if self._embeddings else None

    def adapter(self, name: str) -> AnyAdapter:
        """The adapter of that name."""
        return cast(AnyAdapter, self.neutral_residues[name])

    @property
    def is_head(self) -> bool:
        """Whether it is the output head."""
        return any(isinstance(adapter, GatedHead) for adapter in self.neutral_residues.values())

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The base layer first: Mixtral's jitter writes into its input, which autograd forbids once
        # we have read it.
        output = self._base_output(hidden_states, *args, **kwargs)
        base_output, *rest = output if isinstance(output, tuple) else (output,)
        extended = base_output
        for name in self.active_names():
            self.check_loaded(name)
            extended = self._add_residue(extended, hidden_states, name, base_output)
        return (extended, *rest) if isinstance(output, tuple) else extended

    def _base_output(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the backbone's own block returns; a frozen gated MLP keeps less of it for the
        backward pass (a compiler decides by itself what to keep)."""
        trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        mlp = self._base_mlp if trains and not args and not kwargs else None
        if mlp is not None and can_train_frozen(self.base_layer, mlp, hidden_states):
            return frozen_forward(mlp, hidden_states)
        return self.base_layer(hidden_states, *args, **kwargs)

    @cached_property
    def _base_mlp(self) -> GatedMLP | None:
        return as_gated_mlp(self.base_layer)

    def residue(self, hidden_states: Tensor, name: str) -> AnyResidue:
        """What adapter `name` adds at each token of `hidden_states` (..., D); where its gate reads
        the text, at the tokens of the model's last pass."""
        return self._residue(hidden_states, name, self._given_gate(hidden_states, name))

    def _residue(self, hidden_states: Tensor, name: str, gate: Gate | None) -> AnyResidue:
        adapter = self.adapter(name)
        if not torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(adapter.down.weight.dtype)
        return cast(AnyResidue, adapter(hidden_states, gate))

    def _given_gate(self, hidden_states: Tensor, name: str) -> Gate | None:
        """The extension's gate at these tokens; None where the adapter has its own, or none."""
        if not self.adapter(name).gate_is_given:
            return None
        assert self.embeddings is not None
        return self.embeddings.gate_at(name, hidden_states)

    def _add_residue(
        self, extended: Tensor, hidden_states: Tensor, name: str, base_output: Tensor
    ) -> Tensor:
        """`extended` plus what adapter `name` adds to the tokens that it is computed for."""
        tokens_N, gate = self._tokens_to_compute(hidden_states, name)
        if tokens_N is None:
            residue = self._residue(hidden_states, name, gate)
            if self.residue_hook is not None:
                self.residue_hook.on_residue(self, residue, base_output, name)
            return residue.added_to(extended)
        if not len(tokens_N):
            return extended
        if gate is not None:
            gate = Gate(_at(gate.gate, tokens_N), _at(gate.logits, tokens_N))
        x_ND = _at(hidden_states, tokens_N)
        return self._residue(x_ND, name, gate).added_to(extended, tokens_N)

    def _tokens_to_compute(
        self, hidden_states: Tensor, name: str
    ) -> tuple[Tensor | None, Gate | None]:
        """Positions of the tokens to compute, in row-major order, None means all; and the gates at
        all tokens, where they are known already."""
        tokens_N, gate = None, self._given_gate(hidden_states, name)
        if self.routing is not None:
            if self.residue_hook is not None:
                what = "adapter_names cannot be used while residues are observed"
                raise UserError(what, do="leave the other block")
            tokens_N = self.routing.tokens(name, hidden_states)
            if not len(tokens_N):
                return tokens_N, gate
        adapter = self.adapter(name)
        plain = not self.skipping or self.residue_hook is not None or torch.is_grad_enabled()
        if plain or not can_skip(adapter.kind, hidden_states):
            return tokens_N, gate
        gate = gate or adapter.gate_of(hidden_states.to(adapter.down.weight.dtype))
        assert gate is not None
        chosen = gate.logits if tokens_N is None else _at(gate.logits, tokens_N)
        return active_token_indices(chosen, tokens_N), gate


def residue_layers(model: nn.Module) -> dict[str, NeutralResiduesLayer]:
    """The modules of `model` that have residues, the output head among them, by module name in
    layer order; empty if there are none."""
    return {n: m for n, m in model.named_modules() if isinstance(m, NeutralResiduesLayer)}


def trained_gates(model: nn.Module) -> list[nn.Module]:
    """All gates that train: the adapters' own and the readers of whole extensions."""
    places = modules_beside(model).values()
    modules = [module for place in places for module in place.neutral_residues.values()]
    gates = [
        it.reader if isinstance(it, BesideEmbeddings) else cast(AnyAdapter, it).block_gate
        for it in modules
    ]
    return [it for it in gates if it is not None and next(it.parameters()).requires_grad]


def trained_names(model: nn.Module) -> list[str]:
    """The active adapters with residues that train."""
    found = {
        name: None
        for layer in residue_layers(model).values()
        for name in layer.active_names()
        if any(weight.requires_grad for weight in layer.adapter(name).parameters())
    }
    return list(found)


@contextmanager
def observe_residues(layers: dict[str, NeutralResiduesLayer], hook: ResidueHook) -> Iterator[None]:
    """Within the block, `hook` is called with every residue that these layers compute; a UserError
    if another hook is set already (two local losses at once)."""
    if any(layer.residue_hook is not None for layer in layers.values()):
        what = "the residues of this model are being observed already"
        raise UserError(what, do="leave the other block first")
    with temporarily(list(layers.values()), "residue_hook", hook):
        yield


@contextmanager
def no_skipping(model: nn.Module) -> Iterator[None]:
    """Within the block every token is computed: the reference that skipping is compared with."""
    with temporarily(list(residue_layers(model).values()), "skipping", False):
        yield


def _at(hidden_states: Tensor, tokens_N: Tensor) -> Tensor:
    """(N, D) the hidden states of these tokens."""
    return hidden_states.flatten(0, -2)[tokens_N]


def layer_numbers(layers: Mapping[str, NeutralResiduesLayer]) -> tuple[int | Literal["head"], ...]:
    """Of extended layers by module name: their numbers, as in "model.layers.3.mlp" (a plain count
    if these are not distinct), and "head"."""
    blocks = [name for name, layer in layers.items() if not layer.is_head]
    parts = [[part for part in name.split(".") if part.isdigit()] for name in blocks]
    numbers = [int(digits[-1]) for digits in parts if digits]
    if len(set(numbers)) < len(blocks):
        numbers = list(range(len(blocks)))
    by_name = dict(zip(blocks, numbers, strict=True))
    return tuple(by_name.get(name, HEAD) for name in layers)
