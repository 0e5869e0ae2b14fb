"""Which tokens a ReLU gate leaves out, so that their adapter need not be computed.

Promise: leaving a token out changes nothing, because what would be added to it is exactly 0. Where
all gates of a pass are 0, and in decoding one by one, the outputs are those of the plain path bit
by bit; gathered tokens go through the same formula in a matrix product with fewer rows, which may
round the last bit differently.

Suffixes: N chosen tokens, as in `routing.py`.
"""

import torch
from torch import Tensor

from neutral_residues.config.choices import BlockGate

DENSE_SHARE = 0.85
"""With more than this share of gates open, computing every token costs less than gathering
(LAB.md, "speed of training and running, memory, and what did not pay")."""

GATHER_FROM = 64
"""A pass over fewer tokens computes all of them or, where every gate is 0, none."""

NO_TOKENS = torch.empty(0, dtype=torch.long)


def can_skip(kind: BlockGate, x: Tensor) -> bool:
    """Whether gates can be exactly 0, and reading them makes no accelerator wait."""
    return kind == "relu" and x.is_cpu and not torch.compiler.is_compiling()


def active_token_indices(gate_logits: Tensor, tokens_N: Tensor | None) -> Tensor | None:
    """Of `tokens_N` (None: all), those whose ReLU gate is not 0; None where all are to be computed.
    `gate_logits` holds N numbers; NaN counts as open, so that it shows in the output."""
    num_tokens = gate_logits.numel()
    if num_tokens == 1:  # a decoding step, where every microsecond counts
        return NO_TOKENS if gate_logits.item() <= 0 else tokens_N
    is_closed_N = (gate_logits <= 0).flatten()
    if num_tokens < GATHER_FROM:
        return NO_TOKENS if bool(is_closed_N.all()) else tokens_N
    chosen = is_closed_N.logical_not().nonzero().squeeze(1)
    if len(chosen) > DENSE_SHARE * num_tokens:
        return tokens_N
    return chosen if tokens_N is None else tokens_N[chosen]
