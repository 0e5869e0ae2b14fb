"""The language-modelling loss, the local loss and KL, as sums over tokens in nats. Pure functions;
the caller divides once, at the end.

Every token has a domain label, similar to Transformers' `labels`: SOURCE, TARGET, or IGNORE for
padding. Labels are per token, so that packed, padded and mixed rows all work.

    language modelling           nats of each next token (`next_token_nats`)
    local loss "l1"              L1 norm of the gated output g(x) * A(x), on source tokens only;
                                 section 3, "Training"
    local loss "cross_entropy"   binary cross-entropy of the sigmoid gate with the label "target
                                 token"; the paper's alternative
    beginnings                   a part of "l1" for gates that read tokens, ours: the gate as it is
                                 if the text had begun a few tokens before

Where we choose: the paper's local loss is the L1 norm of the adapter's output, averaged over
adapters and divided by D, on source rows. Whether the norm is taken before or after the gate is not
known; we take it after, of the residue that is added to the model. To make one weight of the loss
suitable for backbones of any depth, width and scale, each residue is divided by the output of its
block, and residues are summed over layers:

    "l1"  =  mean over source tokens of  sum over residues of  size

    in a layer    |g(x) A(x)|_1 / |F(x)|_2                F(x): output of the block itself
    on the head   sqrt(K) x rms over V of g(h) W_b W_a h  in nats, like the loss

The sum over layers is used because the effects of the layers add up too: with a mean, each of 30
layers would be penalised a fifth as much as each of 6. The divisor is |F(x)|_2 because hidden
states grow with depth, and a residue of a given size has the less effect the larger they are.
Dividing an L1 norm by an L2 norm gives a value larger by sqrt(D) than a ratio of equal norms. This
is needed because the language-modelling loss opens a gate with the strength of all D directions of
the residue (LAB.md, "one local loss for every backbone").

Beginnings: a gate b that knows 2 to 9 tokens (`reader.py`) should be closed on source text, and as
g is on target text. With s(x) the size for a gate of 1, without gradient, summed over residues, and
w = 0.1:

    mean over source tokens of |b| s(x)  +  w mean over target tokens of |b - g| s(x)
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

BEGINNINGS_ON_TARGET = 0.1
"""Weight of target tokens in the beginnings' part of the local loss."""

LOGITS_PER_CHUNK = 2**20
"""Softmax is computed in chunks of this many logits: 4 MB in float32, which fit a CPU's cache."""


def next_token_nats(logits_BTV: Tensor, input_ids_BT: Tensor) -> Tensor:
    """(B, T-1) nats of each token given those before it, in float32: entry t is for token t+1.
    Differentiable, and needs no float32 copy of all logits.

    Args:
        logits_BTV: the model's logits, not shifted.
        input_ids_BT: the token ids that it read.
    """
    # Targets are shifted, and not logits: a slice of logits would be copied, and its gradient
    # padded to full size.
    targets_BT = F.pad(input_ids_BT[:, 1:], (0, 1), value=IGNORE)
    nats: Tensor = _TargetNats.apply(logits_BTV.flatten(0, 1), targets_BT.flatten())
    return nats.view(input_ids_BT.shape)[:, :-1]


class _TargetNats(torch.autograd.Function):
    """Cross-entropy of each row, computed in chunks. PyTorch's keeps two float32 tensors with the
    size of the logits, and makes a third in the backward pass."""

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
    """The local loss of one adapter, summed over tokens (for their number see `counted_tokens`), as
    a float32 scalar; without the beginnings' part.

    Args:
        residue: the residue of the adapter, for any shape of tokens.
        base_output: output of the block to which the adapter is parallel.
        domain_labels: SOURCE, TARGET or IGNORE for each token of `residue`, in any shape.

    Raises:
        UserError: if there are more or fewer labels than tokens, or `kind` is "cross_entropy" and
            there is no gate.
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


def beginnings_loss_sums(residue: AnyResidue, base_output: Tensor, domain_labels: Tensor) -> Tensor:
    """(2,) the beginnings' part of the local loss of one adapter whose gate reads tokens, summed
    over source and over target tokens, each with its weight, in float32. Only the gate gets a
    gradient. For the arguments and errors see `local_loss_sum`."""
    assert residue.gate is not None
    assert residue.begun_gate is not None
    sizes = residue.ungated_size(base_output)
    gate, begun = (it.float().reshape(sizes.shape) for it in (residue.gate, residue.begun_gate))
    labels = _aligned(domain_labels, sizes)
    open_on_source = (sizes * begun.abs() * (labels == SOURCE)).sum()
    other_on_target = (sizes * (begun - gate.detach()).abs() * (labels == TARGET)).sum()
    return torch.stack([open_on_source, BEGINNINGS_ON_TARGET * other_on_target])


def _aligned(domain_labels: Tensor, tokens: Tensor) -> Tensor:
    """The labels in the shape of `tokens`, which has one number per token."""
    if domain_labels.numel() != tokens.numel():
        got = f"{domain_labels.numel()} for {tokens.numel()} tokens"
        raise UserError("domain_labels", got=got, allowed="one each")
    return domain_labels.reshape(tokens.shape)


def counted_tokens(domain_labels: Tensor) -> Tensor:
    """(2,) numbers of source and of target tokens, by which sums of the local loss are divided:
    "l1" by the first, "cross_entropy" by their sum."""
    return torch.stack([(domain_labels == SOURCE).sum(), (domain_labels == TARGET).sum()])


def kl_nats(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """KL(reference || model) in nats at each position.

    Args:
        log_probs: (..., V) log-probabilities of the model.
        reference_log_probs: (..., V) log-probabilities of the reference.

    Returns:
        (...), without the last dimension.
    """
    return torch.sum(reference_log_probs.exp() * (reference_log_probs - log_probs), dim=-1)
