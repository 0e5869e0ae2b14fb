"""New tokens of an extension, in addition to the backbone's vocabulary, ours and not the paper's;
after language-specific embeddings (arXiv 2110.10478).

    embedding of new token i     e_i = W_in c_i
    logit of new token i         u_i . h + log g(h),   u_i = W_out c_i

Ids, embeddings and logits of the backbone's tokens do not change: new tokens have the ids after
them, weights of their own, and their logits are appended to the backbone's. Where the extension's
gate is exactly 0, new tokens have probability exactly 0, and all others exactly that of the
backbone.

    symbol   shape   name in checkpoints               meaning
    c        N x K   neutral_residues.tokens.codes     a row per new token, for embedding and logit
    W_in     D x K   neutral_residues.tokens.into      from code to embedding
    W_out    K x D   neutral_residues.tokens.out_of    from final hidden state to the code's space

Suffixes as in `neutral.py`; N new tokens, K their rank.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.errors import UserError
from neutral_residues.tuner.neutral import Gate

LARGEST_SHARE = 0.25
"""Largest share of the new weights for new tokens, unless their rank is set (LAB.md, "French,
German and Hungarian with new tokens")."""
RANK_MULTIPLE = 8
SMALL_GATE = 0.1
"""In training, log g is replaced by its tangent below this gate, so that a gate that is closed
before a new token has a gradient that opens it."""


class NewTokens(nn.Module):
    """The weights of N new tokens; see the module docstring.

    Args:
        num_tokens: N.
        rank: K.
        embedding_width: width of the backbone's embeddings.
        hidden_width: width of the output head's input.
    """

    def __init__(
        self, num_tokens: int, rank: int, *, embedding_width: int, hidden_width: int
    ) -> None:
        super().__init__()
        self.codes = nn.Embedding(num_tokens, rank)
        self.into = nn.Linear(rank, embedding_width, bias=False)
        self.out_of = nn.Linear(hidden_width, rank, bias=False)

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.codes.num_embeddings

    def embed(self, numbers: Tensor) -> Tensor:
        """Numbers (...) of new tokens, 0 to N - 1 -> their embeddings (..., D)."""
        rows: Tensor = self.into(self.codes(numbers))
        return rows

    def logits(self, h: Tensor, gate: Gate | None) -> Tensor:
        """Logits (..., N) of the new tokens from the head's input `h` (..., D) and the extension's
        gate there; None for an extension without a gate, in which new tokens are always possible.
        """
        if not torch.is_autocast_enabled(h.device.type):
            h = h.to(self.out_of.weight.dtype)
        scores = F.linear(self.out_of(h), self.codes.weight)
        if gate is None:
            return scores
        return scores + log_gate(gate, trains=self.training and torch.is_grad_enabled())

    @torch.no_grad()
    def reset_parameters(self, **_: object) -> None:
        """Initialise at random, such that embeddings have a standard deviation of 0.02;
        `start_from` sets better values."""
        for weight in (self.codes.weight, self.into.weight, self.out_of.weight):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
        self.codes.weight.mul_(0.02 * math.sqrt(self.codes.embedding_dim))

    @torch.no_grad()
    def start_from(self, embeddings_ND: Tensor, head_rows_ND: Tensor) -> None:
        """Initialise such that embeddings and head rows are as near as possible to these (N, D):
        by a truncated singular value decomposition of both side by side, each scaled to a root mean
        square of 1."""
        rows = [embeddings_ND.float(), head_rows_ND.float()]
        scales = [of_one.square().mean().sqrt().clamp(min=1e-12) for of_one in rows]
        both = torch.cat([it / scale for it, scale in zip(rows, scales, strict=True)], dim=1)
        rank, width = self.codes.embedding_dim, embeddings_ND.shape[1]
        left, values, right = torch.linalg.svd(both, full_matrices=False)
        found = min(rank, len(values))
        unit = values[:found].square().sum().sqrt() / math.sqrt(len(both) * found)
        codes = left[:, :found] * values[:found]
        # Codes have the size of embeddings, because they have the same learning rate.
        self.codes.weight[:, :found] = (codes / unit * scales[0]).to(self.codes.weight)
        self.codes.weight[:, found:] = 0
        for target, scale, part in (
            (self.into.weight, scales[0], right[:found, :width].t()),
            (self.out_of.weight.t(), scales[1], right[:found, width:].t()),
        ):
            target[:, :found] = (part * unit * scale / scales[0]).to(target)


def log_gate(gate: Gate, *, trains: bool) -> Tensor:
    """(..., 1) log g, -inf where g is 0; in training it stays finite, see `SMALL_GATE`."""
    if not trains:
        return gate.gate.float().log()
    small = SMALL_GATE
    tangent = math.log(small) + (gate.logits.float() - small) / small
    return torch.where(gate.gate > small, gate.gate.float().clamp(min=small).log(), tangent)


def num_token_weights(
    num_tokens: int, rank: int, *, embedding_width: int, hidden_width: int
) -> int:
    """Number of weights of N new tokens: codes and two projections."""
    return rank * (num_tokens + embedding_width + hidden_width) if num_tokens else 0


def usual_token_rank(
    num_new_weights: float, num_tokens: int, *, embedding_width: int, hidden_width: int
) -> int:
    """The default of K: the width of the embeddings, or less if that needs over a quarter of the
    new weights; a UserError if even rank 1 does."""
    per_rank = num_tokens + embedding_width + hidden_width
    rank = min(embedding_width, int(LARGEST_SHARE * num_new_weights / per_rank))
    rank = rank // RANK_MULTIPLE * RANK_MULTIPLE if rank > RANK_MULTIPLE else rank
    if rank < 1:
        most = int(LARGEST_SHARE * num_new_weights) - embedding_width - hidden_width
        what = "new tokens leave nothing of the budget to the layers"
        do = "take fewer, or raise the budget"
        raise UserError(what, got=num_tokens, allowed=f"up to {max(0, most)}", do=do)
    return rank
