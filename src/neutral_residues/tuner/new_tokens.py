"""Tokens of an extension's own, beside the vocabulary of the backbone, ours and not the paper's;
after language-specific embeddings (arXiv 2110.10478).

    embedding of new token i     e_i = W_in c_i
    logit of new token i         u_i . h + log g(h),   u_i = W_out c_i

Old ids, their rows and their logits stay as they are: new tokens have ids behind the backbone's,
rows of their own, and a product of their own whose result is put behind the backbone's logits.
Where the extension's gate is exactly 0 a new token has probability exactly 0, and the old ones have
exactly the backbone's.

    symbol   shape   name in checkpoints               meaning
    c        N x K   neutral_residues.tokens.codes     a row for each new token, shared by both ends
    W_in     D x K   neutral_residues.tokens.into      to an embedding
    W_out    K x D   neutral_residues.tokens.out_of    from the final hidden state

Suffixes as in `neutral.py`; N new tokens, K their rank.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.errors import UserError
from neutral_residues.tuner.neutral import Gate

LARGEST_SHARE = 0.25
"""Of the new weights, what new tokens take at most unless their rank is set (LAB.md, "French,
German and Hungarian with new tokens")."""
RANK_MULTIPLE = 8
SMALL_GATE = 0.1
"""While it trains, log g is continued below this gate by its tangent: so a gate that is closed
where a new token follows has a gradient that opens it."""


class NewTokens(nn.Module):
    """The rows of N new tokens; see the head of this file.

    Args:
        num_tokens: N.
        rank: K.
        embedding_width: of the backbone's embeddings.
        hidden_width: of the output head's input.
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
        """(...) which of the new tokens, 0 to N - 1 -> their embeddings (..., D)."""
        rows: Tensor = self.into(self.codes(numbers))
        return rows

    def logits(self, h: Tensor, gate: Gate | None) -> Tensor:
        """(..., D) the head's input, and the extension's gate there -> (..., N); without a gate the
        new tokens are always possible."""
        if not torch.is_autocast_enabled(h.device.type):
            h = h.to(self.out_of.weight.dtype)
        scores = F.linear(self.out_of(h), self.codes.weight)
        if gate is None:
            return scores
        return scores + log_gate(gate, trains=self.training and torch.is_grad_enabled())

    @torch.no_grad()
    def reset_parameters(self, **_: object) -> None:
        """At random, with the embeddings' usual deviation; `start_from` has better values."""
        for weight in (self.codes.weight, self.into.weight, self.out_of.weight):
            nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
        self.codes.weight.mul_(0.02 * math.sqrt(self.codes.embedding_dim))

    @torch.no_grad()
    def start_from(self, embeddings_ND: Tensor, head_rows_ND: Tensor) -> None:
        """Take the values nearest to these rows, by the truncated singular value decomposition of
        both beside each other, each scaled to a root mean square of 1."""
        rows = [embeddings_ND.float(), head_rows_ND.float()]
        scales = [of_one.square().mean().sqrt().clamp(min=1e-12) for of_one in rows]
        both = torch.cat([it / scale for it, scale in zip(rows, scales, strict=True)], dim=1)
        rank, width = self.codes.embedding_dim, embeddings_ND.shape[1]
        left, values, right = torch.linalg.svd(both, full_matrices=False)
        found = min(rank, len(values))
        unit = values[:found].square().sum().sqrt() / math.sqrt(len(both) * found)
        codes = left[:, :found] * values[:found]
        # Codes have the size of embedding rows, whose learning rate they share.
        self.codes.weight[:, :found] = (codes / unit * scales[0]).to(self.codes.weight)
        self.codes.weight[:, found:] = 0
        for target, scale, part in (
            (self.into.weight, scales[0], right[:found, :width].t()),
            (self.out_of.weight.t(), scales[1], right[:found, width:].t()),
        ):
            target[:, :found] = (part * unit * scale / scales[0]).to(target)


def log_gate(gate: Gate, *, trains: bool) -> Tensor:
    """(..., 1) log g, -inf where g is 0; while it trains, continued by its tangent, see
    `SMALL_GATE`."""
    if not trains:
        return gate.gate.float().log()
    small = SMALL_GATE
    tangent = math.log(small) + (gate.logits.float() - small) / small
    return torch.where(gate.gate > small, gate.gate.float().clamp(min=small).log(), tangent)


def num_token_weights(
    num_tokens: int, rank: int, *, embedding_width: int, hidden_width: int
) -> int:
    """Of N new tokens: codes and two projections."""
    return rank * (num_tokens + embedding_width + hidden_width) if num_tokens else 0


def usual_token_rank(
    num_new_weights: float, num_tokens: int, *, embedding_width: int, hidden_width: int
) -> int:
    """K, where it is not set: the embeddings' width, or what fits a quarter of the new weights;
    a UserError if nothing fits."""
    per_rank = num_tokens + embedding_width + hidden_width
    rank = min(embedding_width, int(LARGEST_SHARE * num_new_weights / per_rank))
    rank = rank // RANK_MULTIPLE * RANK_MULTIPLE if rank > RANK_MULTIPLE else rank
    if rank < 1:
        most = int(LARGEST_SHARE * num_new_weights) - embedding_width - hidden_width
        what = "new tokens leave nothing of the budget to the layers"
        do = "take fewer, or raise the budget"
        raise UserError(what, got=num_tokens, allowed=f"up to {max(0, most)}", do=do)
    return rank
