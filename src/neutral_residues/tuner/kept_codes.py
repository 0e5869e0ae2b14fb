"""Stores what gates that read tokens (`reader.py`) need of earlier tokens, their codes, in the
model's cache, for generation.

Models have one of two kinds of cache:

    a Cache             `past_key_values`, or `cache_params` (Mamba): keys and values, or states
    a list of tensors   `state` (RWKV)

In a `Cache` the codes of an extension are one more layer, so that whatever reorders, crops, repeats
or copies the cache includes them. A list, whose length the model relies on, is replaced by a
subclass that has them as an attribute.

Suffixes: B rows, T tokens of a pass, W tokens before it, C = 8 numbers of a token's code.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import CACHE_NAMES


class CodesLayer(DynamicLayer):
    """A layer of a cache with the codes of one extension."""

    is_compileable = True  # so that the other layers of the cache decide

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def append(self, codes_BTC: Tensor) -> None:
        """Add the codes of further tokens."""
        codes_B1TC = codes_BTC.detach()[:, None]
        self.update(codes_B1TC, codes_B1TC[..., :0])

    def last(self, number: int) -> Tensor:
        """Codes (B, W, C) of the last `number` tokens, or of all if there are fewer."""
        codes: Tensor = self.keys[:, 0, -number:]
        return codes


class StateWithCodes(list[Tensor]):
    """The list of tensors that a model uses as its cache, with the codes of extensions."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(tensors)
        self.layers: list[CodesLayer] = []


def cache_in(values: Mapping[str, Any]) -> Any:
    """The cache among a decoder's arguments or outputs; None if there is none."""
    return next((values[name] for name in CACHE_NAMES if values.get(name) is not None), None)


def codes_before(cache: Any, name: str, number: int) -> tuple[Tensor | None, int]:
    """Codes (B, W, C) of extension `name` for the last `number` tokens in the cache, or None, and
    the number of all tokens with codes. Raises a UserError if the cache holds tokens without
    codes."""
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
    """Add the codes of a pass (extension -> (B, T, C)) to its cache. Returns the cache, or the
    object that replaces it; None if there is none."""
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
    # Recurrent layers do not count tokens, and a cache of only such layers raises an error.
    if any(cache.is_linear):
        return bool(cache.has_previous_state())
    return bool(cache.get_seq_length())
