"""One block of the backbone with its residues beside it: what a forward pass computes, and for
which tokens.

    output = base_layer(x) + sum over active adapters of g(x) * A(x)

The plain path computes every adapter for every token; it is what trains, what is watched (`Tap`)
and what compiles. Two things make it shorter when nothing is trained or watched, with the same
result:

- *requests*: with `adapter_names` (PEFT's argument) each row of a batch names the one adapter it
  wants, or none;
- *skipping*: where the ReLU gate is 0 nothing is added, so those tokens are left out
  (`open_tokens.py`). To know which, the host must see the gates; on a GPU that would make it wait
  in every layer, so there all tokens are computed.

No maths here: `neutral.py` holds it. No loss either: while a `Tap` is set on the layers, they
report to it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import activation_module
from neutral_residues.tuner.config import PREFIX, NeutralResiduesConfig
from neutral_residues.tuner.gated_mlp import Glu, can_train_frozen, frozen_glu, plain_glu
from neutral_residues.tuner.neutral import BlockGate, Residue, initialise, new_projections, residue
from neutral_residues.tuner.skipping import AnswersRequests, can_skip, open_tokens

GATE, UP, DOWN, BLOCK = ROLES = tuple(PREFIX + role for role in ("gate", "up", "down", "block"))


class Adapter(NamedTuple):
    """The parts of one adapter in one layer; w is None where the block gate is "none"."""

    name: str
    w_g: nn.Linear
    w_i: nn.Linear
    w_o: nn.Linear
    w: nn.Linear | None
    activation: nn.Module
    kind: BlockGate


class Tap(Protocol):
    """Somebody who wants to see every residue while the model runs (the local loss, the
    evaluation)."""

    def see(self, layer: "NeutralResiduesLayer", residue: Residue) -> None: ...


class NeutralResiduesLayer(nn.Module, BaseTunerLayer, AnswersRequests):
    """A block of the backbone with residues beside it, one for each named adapter; active ones are
    summed."""

    adapter_layer_names = ROLES
    other_param_names = ("width", "block_gate", "activations", "loaded")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ModuleDict())
        self.width: dict[str, int] = {}
        self.block_gate: dict[str, BlockGate] = {}
        self.activations = nn.ModuleDict()
        self.loaded: dict[str, bool] = {}
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.tap: Tap | None = None
        self.skips = True
        self._glu: Glu | None = None
        self._looked = False

    def add(
        self, name: str, config: NeutralResiduesConfig, *, width_in: int, num_layers: int
    ) -> None:
        """A new residue of that name on the base layer's device: fresh, or NaN where a checkpoint
        is about to fill it.

        Transformers' own loading only reports the tensors that a checkpoint lacks; `_check_loaded`
        finds the NaN.
        """
        assert config.width is not None
        assert config.activation is not None
        w_g, w_i, w_o, w = new_projections(
            width_in=width_in, width=config.width, gated=config.gated, gate_start=config.gate_start
        )
        if config.from_checkpoint:
            _fill_with_nan(w_g, w_i, w_o, w)
        else:
            initialise(
                w_g=w_g,
                w_i=w_i,
                w_o=w_o,
                w=w,
                num_layers=num_layers,
                init=config.init,
                gate_start=config.gate_start,
            )
        getattr(self, GATE)[name], getattr(self, UP)[name], getattr(self, DOWN)[name] = (
            w_g,
            w_i,
            w_o,
        )
        if w is not None:
            getattr(self, BLOCK)[name] = w
        self.width[name], self.block_gate[name] = config.width, config.block_gate
        self.loaded[name] = not config.from_checkpoint
        self.activations[name] = activation_module(config.activation)
        self._move_adapter_to_device_of_base_layer(name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        # The base layer first: Mixtral's jitter writes into its input, which autograd forbids once
        # we have read it.
        output = self._base(hidden_states, *args, **kwargs)
        extended, *rest = output if isinstance(output, tuple) else (output,)
        for name in self.wanted():
            if not self.loaded[name] and not torch.compiler.is_compiling():
                self._check_loaded(name)
            extended = self._extend(extended, hidden_states, name)
        return (extended, *rest) if isinstance(output, tuple) else extended

    def _base(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the backbone's own block returns; a frozen gated unit keeps less of it for the
        backward pass."""
        # A compiler decides by itself what to keep.
        if (
            torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and not args
            and not kwargs
        ):
            if not self._looked:
                self._glu, self._looked = plain_glu(self.base_layer), True
            if self._glu is not None and can_train_frozen(
                self.base_layer, self._glu, hidden_states
            ):
                return frozen_glu(self._glu, hidden_states)
        return self.base_layer(hidden_states, *args, **kwargs)

    def wanted(self) -> list[str]:
        """The adapters of this layer that a pass computes now."""
        names = self.active_adapters if self.requests is None else self.requests.adapters
        return [] if self.disable_adapters else [name for name in names if name in self.width]

    def known_adapters(self) -> list[str]:
        """All adapters of this layer, active or not."""
        return list(self.width)

    def adapter(self, name: str) -> Adapter:
        """The parts of adapter `name`."""
        blocks = getattr(self, BLOCK)
        return Adapter(
            name,
            w_g=getattr(self, GATE)[name],
            w_i=getattr(self, UP)[name],
            w_o=getattr(self, DOWN)[name],
            w=blocks[name] if name in blocks else None,  # noqa: SIM401 - a ModuleDict has no get
            activation=self.activations[name],
            kind=self.block_gate[name],
        )

    def residue(self, hidden_states: Tensor, name: str) -> Residue:
        """What adapter `name` adds at each token of `hidden_states` (..., D)."""
        adapter = self.adapter(name)
        if not torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(adapter.w_g.weight.dtype)
        return residue(
            hidden_states,
            w_g=adapter.w_g,
            w_i=adapter.w_i,
            w_o=adapter.w_o,
            w=adapter.w,
            activation=adapter.activation,
            gate_kind=adapter.kind,
        )

    def _extend(self, extended: Tensor, hidden_states: Tensor, name: str) -> Tensor:
        """`extended` plus what adapter `name` adds to the tokens that it is computed for."""
        tokens_N = self._tokens(hidden_states, name)
        if tokens_N is None:
            residue = self.residue(hidden_states, name)
            if self.tap is not None:
                self.tap.see(self, residue)
            return extended + residue.delta.to(extended.dtype).reshape(extended.shape)
        if not len(tokens_N):
            return extended
        delta_ND = self.residue(_at(hidden_states, tokens_N), name).delta.to(extended.dtype)
        # A new tensor on purpose: some backbones write into what their block returned.
        return extended.flatten(0, -2).index_add(0, tokens_N, delta_ND).view(extended.shape)

    def _tokens(self, hidden_states: Tensor, name: str) -> Tensor | None:
        """Positions of the tokens to compute, in row-major order; None means all."""
        tokens_N = None
        if self.requests is not None:
            if self.tap is not None:
                raise UserError(
                    "adapter_names cannot be used while residues are watched",
                    do="leave the other block",
                )
            tokens_N = self.requests.tokens(name, hidden_states)
        if not self._may_skip(hidden_states, name) or (tokens_N is not None and not len(tokens_N)):
            return tokens_N
        w = getattr(self, BLOCK)[name]
        x = hidden_states if tokens_N is None else _at(hidden_states, tokens_N)
        return open_tokens(w(x.to(w.weight.dtype)), tokens_N)

    def _may_skip(self, hidden_states: Tensor, name: str) -> bool:
        unwatched = self.skips and self.tap is None and not torch.is_grad_enabled()
        return unwatched and can_skip(self.block_gate[name], hidden_states)

    def _check_loaded(self, name: str) -> None:
        """Once for each adapter that was made for a checkpoint: raise unless all its weights have
        come."""
        for key, parameter in self.adapter_parameters(name):
            # Weights that are offloaded to disk are on the meta device here; only their own
            # module's hook fetches them.
            if not parameter.is_meta and not parameter.isfinite().all():
                raise UserError(
                    f"adapter tensors were never loaded, or hold NaN: {key} beside"
                    f" {type(self.base_layer).__name__}",
                    do=(
                        "save the extension again; for fresh weights, dataclasses.replace(config,"
                        " num_new_weights=None)"
                    ),
                )
        self.loaded[name] = True

    def adapter_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights of adapter `name`, each with its name inside this layer."""
        for role in self.adapter_layer_names:
            if name in (adapters := getattr(self, role)):
                for key, parameter in adapters[name].named_parameters():
                    yield f"{role}.{name}.{key}", parameter

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
        """Host models read attributes of their FFN; those that are not ours are the base
        layer's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


def residue_layers(model: nn.Module) -> dict[str, NeutralResiduesLayer]:
    """The extended feed-forward blocks of `model` by module name, in layer order; empty if there
    are none."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, NeutralResiduesLayer)
    }


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights of all block gates that train."""
    layers = residue_layers(model).values()
    return [p for layer in layers for p in getattr(layer, BLOCK).parameters() if p.requires_grad]


@contextmanager
def tapped(layers: dict[str, NeutralResiduesLayer], tap: Tap) -> Iterator[None]:
    """Within the block, `tap` sees every residue that these layers compute.

    Raises:
        UserError: if something else is watching already (two local losses at once).
    """
    if any(layer.tap is not None for layer in layers.values()):
        raise UserError(
            "the residues of this model are being watched already", do="leave the other block first"
        )
    for layer in layers.values():
        layer.tap = tap
    try:
        yield
    finally:
        for layer in layers.values():
            layer.tap = None


@contextmanager
def every_token(model: nn.Module) -> Iterator[None]:
    """Within the block no token is skipped: the reference that the short path is held against."""
    layers = residue_layers(model).values()
    before = [layer.skips for layer in layers]
    for layer in layers:
        layer.skips = False
    try:
        yield
    finally:
        for layer, skips in zip(layers, before, strict=True):
            layer.skips = skips


def _at(hidden_states: Tensor, tokens_N: Tensor) -> Tensor:
    """(N, D) the hidden states of these tokens."""
    return hidden_states.flatten(0, -2)[tokens_N]


@torch.no_grad()
def _fill_with_nan(*linears: nn.Linear | None) -> None:
    for linear in linears:
        for parameter in () if linear is None else linear.parameters():
            parameter.fill_(torch.nan)


def not_mergeable() -> UserError:
    return UserError(
        "neutral residues cannot be merged: the block gate depends on the token, so no single"
        " weight matrix equals it",
        do="keep the adapter beside the model, or unload() to get the backbone back",
    )


def layer_numbers(names: Sequence[str]) -> tuple[int, ...]:
    """The layers' own numbers, as in "model.layers.3.mlp"; a plain count where the names do not
    tell them apart."""
    numbers = [
        int(parts[-1]) for name in names if (parts := [p for p in name.split(".") if p.isdigit()])
    ]
    return tuple(numbers) if len(set(numbers)) == len(names) else tuple(range(len(names)))
