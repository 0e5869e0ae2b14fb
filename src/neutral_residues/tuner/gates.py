"""All gates of an extension by name: their thresholds, and their logits in a forward pass.

    for name, gate in gates(model).items(): ...     gates of blocks, output head or embeddings
    with under_thresholds(model, None): ...         gates as they were trained
    with observe_gates(model) as seen: model(...)   seen: name -> logits, before thresholds
    only_strongest(model, over=32)                  only one of several extensions at each token

Suffixes: B rows, T tokens of a forward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.beside import ModuleBeside, modules_beside
from neutral_residues.tuner.embeddings import BesideEmbeddings, embeddings_layer
from neutral_residues.tuner.neutral import Gated
from neutral_residues.tuner.reader import TokenReader
from neutral_residues.tuner.thresholds import Thresholds, weights_digest

AnyGate = Gated | TokenReader
IN_PEFT = "base_model.model."
"""Prefix of the names of a backbone's modules inside PEFT's model."""


def gates(model: nn.Module, name: str = "default") -> dict[str, AnyGate]:
    """The gates of extension `name`: full name of the wrapped module in the backbone -> the module
    that has the gate. One gate that reads tokens is at the embeddings."""
    found: dict[str, AnyGate] = {}
    for key, place in modules_beside(model).items():
        gate = _gate(place, name)
        if gate is not None:
            found[key.removeprefix(IN_PEFT)] = gate
    return found


def _gate(place: ModuleBeside, name: str) -> AnyGate | None:
    if name not in place.known_adapters():
        return None
    module = place.neutral_residues[name]
    if isinstance(module, BesideEmbeddings):
        return module.reader
    assert isinstance(module, Gated)
    return None if module.block_gate is None else module


def reads_text(model: nn.Module, name: str = "default") -> bool:
    """Whether that extension has one gate that reads tokens."""
    layer = embeddings_layer(model)
    return layer is not None and name in layer.readers()


def apply_thresholds(model: nn.Module, name: str, saved: dict[str, Any] | None) -> None:
    """Set the thresholds of a configuration on the gates of extension `name`; None removes them."""
    own = gates(model, name)
    thresholds = None if saved is None else Thresholds.of(saved)
    if thresholds is not None:
        thresholds.check(gates=own)
        if thresholds.over > 1 and not reads_text(model, name):
            what = "only a gate that reads the text can look at a mean over tokens"
            raise UserError(what, got=f"over {thresholds.over}", allowed="1")
    for key, gate in own.items():
        gate.threshold = None if thresholds is None else thresholds.at(key)


def set_thresholds(
    model: Any, thresholds: Thresholds | None, adapter_name: str = "default"
) -> None:
    """Set the thresholds of extension `adapter_name`, which are saved with it; None removes them.

    Raises:
        UserError: if they belong to other gates or weights, or the gates are never 0.
    """
    if thresholds is not None:
        check_gates(model, adapter_name)
        thresholds.check_weights(extension_tensors(model, adapter_name))
    saved = None if thresholds is None else thresholds.to_dict()
    apply_thresholds(model, adapter_name, saved)
    model.peft_config[adapter_name].thresholds = saved


def check_gates(model: Any, name: str = "default") -> None:
    """Raise a UserError unless that extension has gates that can be exactly 0."""
    own = gates(model, name)
    kinds = {gate.kind for gate in own.values()}
    if not own:
        what = "this extension has no gates, so none can be calibrated"
        raise UserError(what, do="train one with a gate (method neutral, block_gate relu)")
    if kinds != {"relu"}:
        what = "calibration needs gates that can be exactly 0"
        raise UserError(what, got=f"block_gate {', '.join(sorted(kinds))}", allowed="relu")


def only_strongest(model: nn.Module, over: int | None) -> None:
    """Of several extensions with open gates at a token, keep only the one whose gate was the
    largest over the last `over` tokens (see `strongest.py`); None keeps all.

    Raises:
        UserError: for a number below 1, or an extension whose gate does not read tokens or cannot
            be 0.
    """
    if over is not None and over < 1:
        raise UserError("over", got=over, allowed="a number of tokens, 1 or more")
    layer, names = embeddings_layer(model), known_extensions(model)
    readers = layer.readers() if layer is not None else {}
    for name in names if over is not None else []:
        if name not in readers or readers[name].kind != "relu":
            raise cannot_compete(name)
    if layer is not None:
        layer.strongest_over = over


def known_extensions(model: nn.Module) -> list[str]:
    """The names of all extensions of a model, active or not."""
    places = modules_beside(model).values()
    return list(dict.fromkeys(name for place in places for name in place.known_adapters()))


def cannot_compete(name: str) -> UserError:
    """The error for an extension that cannot take part in `only_strongest`."""
    what = f"extension {name}: only gates that read the text can tell whose text it is"
    return UserError(what, allowed="gate_reads tokens, block_gate relu", do="use a sum (--how sum)")


@contextmanager
def under_thresholds(
    model: nn.Module, thresholds: Thresholds | None, name: str = "default"
) -> Iterator[None]:
    """Inside the block extension `name` has these thresholds (None: none); afterwards its own
    again."""
    before = {id(gate): gate.threshold for gate in gates(model, name).values()}
    try:
        for key, gate in gates(model, name).items():
            gate.threshold = None if thresholds is None else thresholds.at(key)
        yield
    finally:
        for gate in gates(model, name).values():
            gate.threshold = before[id(gate)]


def extension_tensors(model: nn.Module, name: str = "default") -> list[Tensor]:
    """The weights of extension `name`, as they are saved."""
    places = modules_beside(model).values()
    return [parameter for place in places for _, parameter in place.adapter_parameters(name)]


def extension_digest(model: nn.Module, name: str = "default") -> str:
    """Digest of the weights of extension `name`, see `weights_digest`."""
    return weights_digest(extension_tensors(model, name))


@contextmanager
def observe_gates(model: nn.Module, name: str = "default") -> Iterator[dict[str, Tensor]]:
    """Inside the block, the dictionary that it yields holds the logits of every gate after each
    forward pass: before thresholds, with the leading dimensions of the gate's input.

    The gate of an output head that computed only the last positions has logits for these only.
    """
    seen: dict[str, Tensor] = {}

    own, layer = gates(model, name), embeddings_layer(model)

    def keep(key: str, module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> None:
        gate, logits = own[key], logits.detach()
        if isinstance(gate, TokenReader):
            # The reader computes earlier tokens again, for the mean or sum over the last tokens.
            assert layer is not None
            logits = logits[:, gate.over - 1 + layer.num_more :]
        seen[key] = logits

    hooks = []
    for key, gate in own.items():
        module = gate if isinstance(gate, TokenReader) else gate.block_gate
        assert module is not None
        hooks.append(module.register_forward_hook(partial(keep, key)))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
