"""Which tokens of a batch an adapter is computed for: those of its own requests, and of these those with an open gate.

Promise: leaving a token out changes nothing, because what would be added to it is exactly 0 (a ReLU gate), or is not
wanted (a request for another adapter, or for none). Where all gates of a pass are 0, and in decoding one by one, the
outputs are those of the plain path bit by bit; gathered tokens go through the same formula in a matrix product with
fewer rows, which may round the last bit differently.

Suffixes: N chosen tokens, of all tokens of the batch in row-major order.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from neutral_residues.errors import UserError, nearest

BACKBONE = "__base__"
"""PEFT's name, in `adapter_names`, for a request that wants no adapter."""

DENSE_SHARE = 0.75
"""With more than this share of gates open, computing every token costs less than gathering (measured: LAB.md)."""

GATHER_FROM = 64
"""A pass over fewer tokens is computed for all of them or, where every gate is 0, for none: too small to gather."""


class Requests:
    """Which adapter each row of a batch wants; one object serves all layers of a forward pass.

    Args:
        names: for each row the name of an adapter, or `BACKBONE`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.adapters = tuple(name for name in dict.fromkeys(names) if name != BACKBONE)
        self._tokens_N: dict[tuple[str, int, torch.device], Tensor] = {}

    def tokens(self, name: str, *, num_tokens: int, device: torch.device) -> Tensor:
        """(N,) positions of the tokens that want `name`, among `num_tokens`.

        Beams and several returned sequences repeat each row; a backbone may fold rows and tokens into one dimension.
        Both leave the tokens of a request side by side.
        """
        key = (name, num_tokens, device)
        if key not in self._tokens_N:
            per_request = num_tokens // len(self.names)
            wanted = torch.tensor([n == name for n in self.names], device=device)
            self._tokens_N[key] = wanted.repeat_interleave(per_request).nonzero().squeeze(1)
        return self._tokens_N[key]


def check_requests(names: Any, *, num_rows: int, known: Sequence[str]) -> None:
    """Raise a UserError unless `names` holds one known adapter, or `BACKBONE`, for each row of the batch."""
    if isinstance(names, str) or len(names) != num_rows:
        got = f"{names!r}" if isinstance(names, str) else f"{len(names)} names for {num_rows} rows"
        raise UserError("adapter_names", got=got, allowed="a list with one name for each row of the batch")
    for name in names:
        if name != BACKBONE and name not in known:
            raise UserError(
                "adapter_names: this adapter is not loaded",
                got=name,
                allowed=f"{', '.join(known)}, or {BACKBONE} for none",
                do=nearest(name, known),
            )


def open_tokens(gate_logits: Tensor, tokens_N: Tensor | None) -> Tensor | None:
    """Of `tokens_N` (None: all), those whose ReLU gate is not 0; None where all are to be computed.

    Args:
        gate_logits: (N, 1), or any shape with as many numbers; NaN counts as open, so that it is seen.
    """
    is_open_N = ~(gate_logits <= 0).flatten()
    if len(is_open_N) < GATHER_FROM:
        return tokens_N if bool(is_open_N.any()) else is_open_N.new_empty(0, dtype=torch.long)
    chosen = is_open_N.nonzero().squeeze(1)
    if len(chosen) > DENSE_SHARE * len(is_open_N):
        return tokens_N
    return chosen if tokens_N is None else tokens_N[chosen]
