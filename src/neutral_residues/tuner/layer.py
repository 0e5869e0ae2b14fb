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
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.config import NeutralResiduesConfig
from neutral_residues.tuner.frozen_mlp import can_train_frozen, frozen_forward
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp
from neutral_residues.tuner.head import GatedHead, HeadResidue
from neutral_residues.tuner.neutral import PREFIX, GatedAdapter, Residue
from neutral_residues.tuner.routing import RoutableModule, temporarily
from neutral_residues.tuner.skipping import active_token_indices, can_skip

AnyResidue = Residue | HeadResidue
AnyAdapter = GatedAdapter | GatedHead

HEAD: Literal["head"] = "head"
"""The output head's place among the numbers of the layers."""


class ResidueHook(Protocol):
    """Called with every residue that a model computes (by the local loss, the evaluation)."""

    def on_residue(self, layer: "NeutralResiduesLayer", residue: AnyResidue) -> None: ...


class NeutralResiduesLayer(nn.Module, BaseTunerLayer, RoutableModule):
    """A block of the backbone, or its output head, and the adapters parallel to it; active ones are
    summed."""

    adapter_layer_names = (PREFIX,)
    other_param_names = ("loaded",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.neutral_residues = nn.ModuleDict()
        self.loaded: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.residue_hook: ResidueHook | None = None
        self.skipping = True

    def add_adapter(
        self, name: str, adapter: AnyAdapter, config: NeutralResiduesConfig, *, num_layers: int
    ) -> None:
        """A new adapter on the base layer's device: fresh, or NaN where a checkpoint is about to
        fill it: Transformers only reports tensors that are missing, `_check_loaded` finds NaN."""
        if config.from_checkpoint:
            for parameter in adapter.parameters():
                nn.init.constant_(parameter, torch.nan)
        else:
            adapter.reset_parameters(num_layers=num_layers, init=config.init)
        self.neutral_residues[name] = adapter
        self.loaded[name] = not config.from_checkpoint
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def adapter(self, name: str) -> AnyAdapter:
        """The adapter of that name."""
        return cast(AnyAdapter, self.neutral_residues[name])

    @property
    def is_head(self) -> bool:
        """Whether it is the output head."""
        return any(isinstance(adapter, GatedHead) for adapter in self.neutral_residues.values())

    def known_adapters(self) -> list[str]:
        """All adapters of this layer, active or not."""
        return list(self.neutral_residues)

    def active_names(self) -> list[str]:
        """The adapters of this layer that a pass computes now."""
        if self.disable_adapters:
            return []
        names = self.active_adapters if self.routing is None else self.routing.adapters
        return [name for name in names if name in self.neutral_residues]

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The base layer first: Mixtral's jitter writes into its input, which autograd forbids once
        # we have read it.
        output = self._base_output(hidden_states, *args, **kwargs)
        extended, *rest = output if isinstance(output, tuple) else (output,)
        for name in self.active_names():
            if not self.loaded[name] and not torch.compiler.is_compiling():
                self._check_loaded(name)
            extended = self._add_residue(extended, hidden_states, name)
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
        """What adapter `name` adds at each token of `hidden_states` (..., D)."""
        adapter = self.adapter(name)
        if not torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(adapter.down.weight.dtype)
        return cast(AnyResidue, adapter(hidden_states))

    def _add_residue(self, extended: Tensor, hidden_states: Tensor, name: str) -> Tensor:
        """`extended` plus what adapter `name` adds to the tokens that it is computed for."""
        tokens_N = self._tokens_to_compute(hidden_states, name)
        if tokens_N is None:
            residue = self.residue(hidden_states, name)
            if self.residue_hook is not None:
                self.residue_hook.on_residue(self, residue)
            return residue.added_to(extended)
        if not len(tokens_N):
            return extended
        return self.residue(_at(hidden_states, tokens_N), name).added_to(extended, tokens_N)

    def _tokens_to_compute(self, hidden_states: Tensor, name: str) -> Tensor | None:
        """Positions of the tokens to compute, in row-major order; None means all."""
        tokens_N = None
        if self.routing is not None:
            if self.residue_hook is not None:
                what = "adapter_names cannot be used while residues are observed"
                raise UserError(what, do="leave the other block")
            tokens_N = self.routing.tokens(name, hidden_states)
            if not len(tokens_N):
                return tokens_N
        adapter = self.adapter(name)
        plain = not self.skipping or self.residue_hook is not None or torch.is_grad_enabled()
        if plain or adapter.block_gate is None or not can_skip(adapter.kind, hidden_states):
            return tokens_N
        x = hidden_states if tokens_N is None else _at(hidden_states, tokens_N)
        gate_logits = adapter.block_gate(x.to(adapter.block_gate.weight.dtype))
        return active_token_indices(gate_logits, tokens_N)

    def _check_loaded(self, name: str) -> None:
        """Once for an adapter made for a checkpoint: a UserError if a weight was not loaded."""
        for key, parameter in self.adapter_parameters(name):
            # Weights on disk are on the meta device here; only their module's hook fetches them.
            if not parameter.is_meta and not parameter.isfinite().all():
                what = "adapter tensors were never loaded, or hold NaN"
                fresh = "dataclasses.replace(config, num_new_weights=None)"
                do = f"save the extension again; for fresh weights, {fresh}"
                raise UserError(
                    f"{what}: {key}, parallel to {type(self.base_layer).__name__}", do=do
                )
        self.loaded[name] = True

    def adapter_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of adapter `name`, if this layer has it, each with its name in this layer."""
        if name in self.neutral_residues:
            yield from self.adapter(name).named_parameters(prefix=f"{PREFIX}.{name}")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise not_mergeable()

    def unmerge(self) -> None:
        """Nothing is ever merged."""

    def _get_base_layer_device_and_dtype(
        self, base_layer: nn.Module
    ) -> tuple[torch.device | None, torch.dtype | None]:
        parameter = next(base_layer.parameters(), None)
        if parameter is None:
            return None, None
        return parameter.device, parameter.dtype if parameter.dtype.is_floating_point else None

    def __getattr__(self, name: str) -> Any:
        """Host models read attributes of their FFN; what is not ours is the base layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def residue_layers(model: nn.Module) -> dict[str, NeutralResiduesLayer]:
    """The extended blocks of `model` by module name, in layer order; empty if there are none."""
    return {n: m for n, m in model.named_modules() if isinstance(m, NeutralResiduesLayer)}


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all block gates that train."""
    layers = residue_layers(model).values()
    gates = [layer.adapter(n).block_gate for layer in layers for n in layer.known_adapters()]
    return [p for gate in gates if gate is not None for p in gate.parameters() if p.requires_grad]


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


def not_mergeable() -> UserError:
    return UserError(
        "neutral residues cannot be merged: the gate depends on the token, no matrix equals it",
        do="keep the adapter as it is, or unload() to get the backbone back",
    )


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
