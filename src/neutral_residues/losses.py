"""Losses as sums, in nats, over tokens of a named kind. Pure functions; the caller divides, once,
at the end.

Every token carries a domain label, in the manner of Transformers' `labels`: SOURCE, TARGET, or
IGNORE for padding. The labels are per token, so packed, padded and mixed rows all work.

    language modelling           nats of each next token (`next_token_nats`)
    local loss "l1"              size of g(x) * A(x) in its L1 norm, source tokens only; section 3,
                                 "Training"
    local loss "cross_entropy"   gate (sigmoid) against "is this a target token"; the paper's
                                 alternative

Where we choose: the paper's local loss is the L1 norm of the adapter's output, averaged over
adapters and divided by D, on source rows. Whether the norm is taken before or after the gate is not
known: we take it after, on what is really added to the model. And so that one weight serves
backbones of any depth, width and scale, we measure every residue by what it stands beside, and add
up:

    "l1"  =  mean over source tokens of  sum over residues of  size

    in a layer    |g(x) A(x)|_1 / |F(x)|_2                F(x): what the block itself puts out
    on the head   sqrt(K) x rms over V of g(h) W_b W_a h  in nats, as the loss itself

A sum, because what the layers add adds up too: in a mean each of 30 layers would feel a fifth of
the pressure that each of 6 does. Over |F(x)|_2, because hidden states grow with depth, and a
residue of a given size changes the outcome the less the larger they are. The L1 norm over the
Euclidean one is larger by sqrt(D) than a ratio of equal norms: the language-modelling loss pulls a
gate open by all that the residue aligns with, of D directions (LAB.md, "one local loss for every
backbone").
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from neutral_residues.config.choices import LocalLoss
from neutral_residues.data.labels import IGNORE, SOURCE, TARGET
from neutral_residues.errors import UserError
from neutral_residues.tuner.layer import AnyResidue

LOGITS_PER_CHUNK = 2**20
"""So many logits at a time become probabilities: 4 MB of float32, which stay in a CPU's cache."""


def next_token_nats(logits_BTV: Tensor, input_ids_BT: Tensor) -> Tensor:
    """Nats of each token given those before, (B, T-1): entry t is for token t+1. In float32, and
    without a copy of the logits in it."""
    # The targets are shifted, not the logits: a slice of those would be copied, and its gradient
    # padded, at full size.
    targets_BT = F.pad(input_ids_BT[:, 1:], (0, 1), value=IGNORE)
    nats: Tensor = _TargetNats.apply(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return nats.view(input_ids_BT.shape)[:, :-1]


class _TargetNats(torch.autograd.Function):
    """Cross entropy of each row, chunk by chunk. Autograd's own keeps two tensors of the logits'
    size in float32, and makes a third in the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        ctx.save_for_backward(logits_NV, targets_N)
        rows = _chunk_rows(logits_NV)
        chunks = zip(logits_NV.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([_cross_entropy(logits, targets) for logits, targets in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, targets_N = ctx.saved_tensors
        rows, d_logits_NV = _chunk_rows(logits_NV), torch.empty_like(logits_NV)
        d_N1 = d_N.where(targets_N != IGNORE, 0)[:, None]
        indices_N1 = targets_N.where(targets_N != IGNORE, 0)[:, None]
        parts = (it.split(rows) for it in (logits_NV, d_logits_NV, d_N1, indices_N1))
        for logits, d_logits, d, indices in zip(*parts, strict=True):
            chunk = logits.softmax(-1, dtype=torch.float32).mul_(d).scatter_add_(1, indices, -d)
            d_logits.copy_(chunk)
        return d_logits_NV, None


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORE, reduction="none")


def _chunk_rows(logits_NV: Tensor) -> int:
    return max(1, LOGITS_PER_CHUNK // logits_NV.shape[1])


def local_loss_sum(
    residue: AnyResidue, base_output: Tensor, domain_labels: Tensor, kind: LocalLoss
) -> Tensor:
    """The local loss of one adapter, summed over the tokens it counts (see `counted_tokens`): a
    float32 scalar.

    Args:
        residue: what the adapter adds, with any leading shape.
        base_output: what the block that it is parallel to puts out itself.
        domain_labels: SOURCE, TARGET or IGNORE for each token; as many numbers as `residue` has
            tokens.

    Raises:
        UserError: if labels and tokens differ in number, or there is no gate that the kind needs.
    """
    if kind == "l1":
        sizes = residue.relative_size(base_output)
        return (sizes * (_aligned(domain_labels, sizes) == SOURCE)).sum()
    if residue.gate_logits is None:
        what = "local_loss cross_entropy needs a block gate"
        raise UserError(what, got="none", allowed="sigmoid")
    logits = residue.gate_logits.float().squeeze(-1)
    labels = _aligned(domain_labels, logits)
    is_target = (labels == TARGET).float()
    nats = F.binary_cross_entropy_with_logits(logits, is_target, reduction="none")
    return (nats * (labels != IGNORE)).sum()


def _aligned(domain_labels: Tensor, tokens: Tensor) -> Tensor:
    """The labels in the shape of `tokens`, which holds one number for each."""
    if domain_labels.numel() != tokens.numel():
        got = f"{domain_labels.numel()} for {tokens.numel()} tokens"
        raise UserError("domain_labels", got=got, allowed="one each")
    return domain_labels.reshape(tokens.shape)


def counted_tokens(domain_labels: Tensor, kind: LocalLoss) -> Tensor:
    """How many tokens `local_loss_sum` adds up: the source tokens for "l1", all that are not
    padding otherwise."""
    counted = domain_labels == SOURCE if kind == "l1" else domain_labels != IGNORE
    return counted.sum()


def kl_nats(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """KL(reference || model) at each position, in nats: the shape of `log_probs` without its last
    dimension, over which the probabilities sum to 1."""
    return torch.sum(reference_log_probs.exp() * (reference_log_probs - log_probs), dim=-1)
