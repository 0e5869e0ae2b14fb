"""The layer of the PEFT tuner: a module of the backbone (a block or the output head) with the
adapters parallel to it.

    output = base_layer(x) + sum over active adapters of their residue at x

The plain path computes every adapter for every token; it is used in training, with
`torch.compile`, and when a `ResidueHook` observes residues. In inference, adapters may be computed
for fewer tokens, with the same result:

- *routing*: with `adapter_names` (PEFT's argument) each row of a batch uses one adapter or none
  (`routing.py`);
- *skipping*: where a ReLU gate is 0 nothing is added, so these tokens are left out (`skipping.py`).
  This needs the gates on the host; on a GPU the host would have to wait in every layer, so there
  all tokens are computed.

The formulas are in `neutral.py` and `head.py`. The local loss gets the residues through a
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
"""Stands for the output head among the numbers of layers."""


class ResidueHook(Protocol):
    """An object that is called with every residue of a forward pass; the local loss and the
    evaluation have one."""

    def on_residue(
        self, layer: "NeutralResiduesLayer", residue: AnyResidue, base_output: Tensor, name: str
    ) -> None:
        """Called after `layer` has computed a residue.

        Args:
            base_output: output (..., D) of the backbone's own block; for the output head, logits
                (..., V), to which other adapters may have been added already.
            name: name of the adapter.
        """


class NeutralResiduesLayer(ModuleBeside):
    """A block of the backbone, or its output head, with the adapters parallel to it; residues of
    the active ones are added to its output."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.residue_hook: ResidueHook | None = None
        self.skipping = True
        self._embeddings: tuple[EmbeddingsLayer, ...] = ()  # not a part of this module

    def connect(self, embeddings: EmbeddingsLayer) -> None:
        """Set the embeddings layer that computes gates that read tokens."""
        self._embeddings = (embeddings,)

    @property
    def embeddings(self) -> EmbeddingsLayer | None:
        """The embeddings layer that computes gates that read tokens, or None."""
        return self._embeddings[0] if self._embeddings else None

    def adapter(self, name: str) -> AnyAdapter:
        """The adapter called `name`."""
        return cast(AnyAdapter, self.neutral_residues[name])

    @property
    def is_head(self) -> bool:
        """Whether this is the output head."""
        return any(isinstance(adapter, GatedHead) for adapter in self.neutral_residues.values())

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The base layer comes first: Mixtral's jitter writes into its input, which autograd forbids
        # once an adapter has read it.
        output = self._base_output(hidden_states, *args, **kwargs)
        base_output, *rest = output if isinstance(output, tuple) else (output,)
        extended = base_output
        for name in self.active_names():
            self.check_loaded(name)
            extended = self._add_residue(extended, hidden_states, name, base_output)
        return (extended, *rest) if isinstance(output, tuple) else extended

    def _base_output(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Output of the backbone's own block. In training, a frozen gated MLP runs in a form that
        stores less for the backward pass, unless compiled, as a compiler decides what to store."""
        trains = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        mlp = self._base_mlp if trains and not args and not kwargs else None
        if mlp is not None and can_train_frozen(self.base_layer, mlp, hidden_states):
            return frozen_forward(mlp, hidden_states)
        return self.base_layer(hidden_states, *args, **kwargs)

    @cached_property
    def _base_mlp(self) -> GatedMLP | None:
        return as_gated_mlp(self.base_layer)

    def residue(self, hidden_states: Tensor, name: str) -> AnyResidue:
        """The residue of adapter `name` at each token of `hidden_states` (..., D). If its gate
        reads tokens, these must be the tokens of the model's last forward pass."""
        return self._residue(hidden_states, name, self._given_gate(hidden_states, name))

    def _residue(self, hidden_states: Tensor, name: str, gate: Gate | None) -> AnyResidue:
        adapter = self.adapter(name)
        if not torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(adapter.down.weight.dtype)
        return cast(AnyResidue, adapter(hidden_states, gate))

    def _given_gate(self, hidden_states: Tensor, name: str) -> Gate | None:
        """The gate that reads tokens, at these tokens; None if the adapter has a gate of its own or
        none."""
        if not self.adapter(name).gate_is_given:
            return None
        assert self.embeddings is not None
        return self.embeddings.gate_at(name, hidden_states)

    def _add_residue(
        self, extended: Tensor, hidden_states: Tensor, name: str, base_output: Tensor
    ) -> Tensor:
        """`extended` plus the residue of adapter `name`, which is computed only where needed."""
        tokens_N, gate = self._tokens_to_compute(hidden_states, name)
        if tokens_N is None:
            residue = self._residue(hidden_states, name, gate)
            if self.residue_hook is not None:
                self.residue_hook.on_residue(self, residue, base_output, name)
            return residue.added_to(extended)
        if not len(tokens_N):
            return extended
        if gate is not None:
            gate = gate.map(lambda values: _at(values, tokens_N))
        x_ND = _at(hidden_states, tokens_N)
        return self._residue(x_ND, name, gate).added_to(extended, tokens_N)

    def _tokens_to_compute(
        self, hidden_states: Tensor, name: str
    ) -> tuple[Tensor | None, Gate | None]:
        """Positions of the tokens to compute, in row-major order, or None for all; and the gates at
        all tokens if already known, else None."""
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
    """Module name -> layer, for all blocks with residues in their order, and the output head if it
    has one; empty for a model without neutral residues."""
    return {n: m for n, m in model.named_modules() if isinstance(m, NeutralResiduesLayer)}


def trained_gates(model: nn.Module) -> list[nn.Module]:
    """All trainable gates: block gates of adapters and gates that read tokens."""
    places = modules_beside(model).values()
    modules = [module for place in places for module in place.neutral_residues.values()]
    gates = [
        it.reader if isinstance(it, BesideEmbeddings) else cast(AnyAdapter, it).block_gate
        for it in modules
    ]
    return [it for it in gates if it is not None and next(it.parameters()).requires_grad]


def trained_names(model: nn.Module) -> list[str]:
    """Names of the active adapters that are trainable."""
    found = {
        name: None
        for layer in residue_layers(model).values()
        for name in layer.active_names()
        if any(weight.requires_grad for weight in layer.adapter(name).parameters())
    }
    return list(found)


@contextmanager
def observe_residues(layers: dict[str, NeutralResiduesLayer], hook: ResidueHook) -> Iterator[None]:
    """Inside this context, `hook` is called with every residue that these layers compute. Raises a
    UserError if another hook is set already (two local losses at once)."""
    if any(layer.residue_hook is not None for layer in layers.values()):
        what = "the residues of this model are being observed already"
        raise UserError(what, do="leave the other block first")
    with temporarily(list(layers.values()), "residue_hook", hook):
        yield


@contextmanager
def no_skipping(model: nn.Module) -> Iterator[None]:
    """Inside this context, adapters are computed for every token, also where a gate is 0."""
    with temporarily(list(residue_layers(model).values()), "skipping", False):
        yield


def _at(hidden_states: Tensor, tokens_N: Tensor) -> Tensor:
    """Hidden states (N, D) of the tokens at these positions."""
    return hidden_states.flatten(0, -2)[tokens_N]


def layer_numbers(layers: Mapping[str, NeutralResiduesLayer]) -> tuple[int | Literal["head"], ...]:
    """The number of each layer, taken from its name, such as 3 from "model.layers.3.mlp", and
    "head" for the output head. If numbers are not distinct, layers are counted from 0."""
    blocks = [name for name, layer in layers.items() if not layer.is_head]
    parts = [[part for part in name.split(".") if part.isdigit()] for name in blocks]
    numbers = [int(digits[-1]) for digits in parts if digits]
    if len(set(numbers)) < len(blocks):
        numbers = list(range(len(blocks)))
    by_name = dict(zip(blocks, numbers, strict=True))
    return tuple(by_name.get(name, HEAD) for name in layers)
