"""KL divergence to the backbone on source tokens, a term that any method can add to its
language-modelling loss (`training.kl_weight`).

    loss = nats of next tokens + weight x KL(backbone || model) at source tokens

Both sums are divided by the same number of tokens, so with a weight of 1 a nat of KL at a source
token costs as much as a nat of next-token loss. Noised source rows have no next-token loss, but
they count here: the model should predict what the backbone predicts on them too.

Cost: one more forward pass on the rows with source text, and, if the model does not keep its
backbone (full fine-tuning), a frozen copy of the backbone in memory.

Suffixes: B rows, S of them with source text, T tokens, V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neutral_residues.data.labels import SOURCE
from neutral_residues.evaluation.inference import as_backbone
from neutral_residues.losses import kl_nats
from neutral_residues.tuner.routing import temporarily


class BackboneLogits(NamedTuple):
    """Logits of the backbone on the rows of a batch with source text."""

    rows_S: Tensor  # indices of these rows in the batch
    is_source_ST: Tensor  # (S, T - 1) float32: 1 at source tokens, else 0
    logits_STV: Tensor  # empty if no row has source text


@torch.no_grad()
def backbone_logits(
    model: nn.Module, input_ids_BT: Tensor, domain_labels_BT: Tensor, reference: nn.Module | None
) -> BackboneLogits:
    """Logits of the backbone, computed without dropout and gradients.

    Args:
        reference: the backbone; None to run `model` with its extension disabled.
    """
    is_source_BT = domain_labels_BT == SOURCE
    rows_S = is_source_BT.any(dim=1).nonzero().squeeze(1)
    logits = torch.empty(0, device=input_ids_BT.device)
    if len(rows_S):
        modules = list(model.modules())
        with temporarily(modules, "training", False), as_backbone(model, reference) as backbone:
            logits = backbone(input_ids=input_ids_BT[rows_S], use_cache=False).logits
    return BackboneLogits(rows_S, is_source_BT[rows_S, :-1].float(), logits)


def kl_sum(logits_BTV: Tensor, backbone: BackboneLogits) -> Tensor:
    """KL(backbone || model) in nats, summed over all source tokens but the last of each row: a
    float32 scalar."""
    if not len(backbone.rows_S):
        return logits_BTV.new_zeros((), dtype=torch.float32)
    # New tokens are left out of the sum: the backbone gives them probability 0.
    vocabulary = backbone.logits_STV.shape[-1]
    log_probs = _log_probs(logits_BTV[backbone.rows_S])[..., :vocabulary]
    kl_ST = kl_nats(log_probs, _log_probs(backbone.logits_STV))
    return (kl_ST * backbone.is_source_ST).sum()


def _log_probs(logits: Any) -> Tensor:
    return torch.log_softmax(logits[:, :-1].float(), dim=-1)
