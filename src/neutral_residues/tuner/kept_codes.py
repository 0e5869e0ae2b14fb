"""What gates that read the text (`reader.py`) keep of earlier tokens, where text comes in pieces.

A model hands what it keeps itself from pass to pass, in one of two forms:

    a Cache             `past_key_values`, or `cache_params` (Mamba): keys and values, or states
    a list of tensors   `state` (RWKV)

The codes of an extension are one more layer of the former, so whatever reorders, cuts, repeats or
copies a cache does it to them too. A list, whose length the model relies on, becomes one that has
them as an attribute.

Suffixes: B rows, T tokens of a pass, W those before it, C 8 numbers of a code.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import CACHE_NAMES


class CodesLayer(DynamicLayer):
    """The codes of one extension."""

    is_compileable = True  # so that what the other layers are decides

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def append(self, codes_BTC: Tensor) -> None:
        """Keep the codes of further tokens."""
        codes_B1TC = codes_BTC.detach()[:, None]
        self.update(codes_B1TC, codes_B1TC[..., :0])

    def last(self, number: int) -> Tensor:
        """(B, W, C) of the last tokens, so many or as many as there are."""
        codes: Tensor = self.keys[:, 0, -number:]
        return codes


class StateWithCodes(list[Tensor]):
    """A list of tensors that a model keeps, and the codes of extensions."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(tensors)
        self.layers: list[CodesLayer] = []


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among a decoder's arguments or outputs; None if there is none."""
    return next((values[name] for name in CACHE_NAMES if values.get(name) is not None), None)


def codes_before(cache: Any, name: str, number: int) -> tuple[Tensor | None, int]:
    """Of extension `name`, (B, W, C) of the last so many tokens in a cache, None if there are none,
    and how many there are in all; a UserError if the cache holds text that it has not read."""
    if cache is None:
        return None, 0
    stored = _stored(cache, name)
    if stored is not None and (length := stored.get_seq_length()):
        return stored.last(number), length
    if stored is None and _holds_text(cache):
        what = f"past_key_values were computed without {name!r}, whose gate reads the text"
        raise UserError(what, do="compute them with the extension active")
    return None, 0


def keep_codes(cache: Any, codes: Mapping[str, Tensor]) -> Any:
    """Add (B, T, C) of a pass, by extension, to its cache, if it has one; returns that cache, or
    what takes its place."""
    if cache is None or not codes:
        return cache
    if type(cache) is list:
        cache = StateWithCodes(cache)
    for name, codes_BTC in codes.items():
        stored = _stored(cache, name)
        if stored is None:
            stored = CodesLayer(name)
            cache.layers.append(stored)
        stored.append(codes_BTC)
    return cache


def _stored(cache: Any, name: str) -> CodesLayer | None:
    if type(cache) is list:
        return None
    if not isinstance(cache, Cache | StateWithCodes):
        what, got = "a gate that reads the text cannot keep what it has read", type(cache).__name__
        raise UserError(what, got=got, do="pass use_cache=False, or train with gate_reads layer")
    mine = (it for it in cache.layers if isinstance(it, CodesLayer) and it.name == name)
    return next(mine, None)


def _holds_text(cache: Any) -> bool:
    if isinstance(cache, list):
        return True
    # Recurrent layers count no tokens, and a cache of these alone refuses to be asked.
    if any(cache.is_linear):
        return bool(cache.has_previous_state())
    return bool(cache.get_seq_length())
