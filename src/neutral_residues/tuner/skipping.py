"""Finds the tokens whose ReLU gate is 0, for which the adapter need not be computed.

Promise: skipping a token does not change its output, because the residue there is exactly 0. If all
gates of a pass are 0, and in decoding token by token, outputs are bit-identical to those without
skipping; otherwise the same formula runs as a matrix product with fewer rows, which may round the
last bit differently.

Suffixes: N chosen tokens, as in `routing.py`.
"""

import torch
from torch import Tensor

from neutral_residues.config.choices import BlockGate

DENSE_SHARE = 0.85
"""If a larger share of gates is open, computing every token is faster than gathering some (LAB.md,
"speed of training and running, memory, and what did not pay")."""

GATHER_FROM = 64
"""A pass over fewer tokens computes all of them or, if every gate is 0, none."""

NO_TOKENS = torch.empty(0, dtype=torch.long)


def can_skip(kind: BlockGate, x: Tensor) -> bool:
    """Whether tokens can be skipped: gates can be exactly 0, and can be read without waiting for an
    accelerator."""
    return kind == "relu" and x.is_cpu and not torch.compiler.is_compiling()


def active_token_indices(gate_logits: Tensor, tokens_N: Tensor | None) -> Tensor | None:
    """The positions in `tokens_N` whose ReLU gate is not 0, or all of them if skipping does not
    pay; None stands for all tokens, in the argument too.

    Args:
        gate_logits: N numbers; NaN counts as open, so that it reaches the output.
    """
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
