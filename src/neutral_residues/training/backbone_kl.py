"""KL to the backbone on source tokens: what any method can add to its language-modelling loss
(`training.kl_weight`).

    loss = nats of next tokens + weight x KL(backbone || model) at source tokens

Both sums have one divisor, all tokens that a step predicts: at a weight of 1, a source token counts
once for what comes next and once for how far the model has moved from the backbone. A noised source
row has no next token to learn, but a backbone to stay close to, so it counts here.

Cost: one more forward pass, on the rows that hold source text, and for a model that does not keep
its backbone (full fine-tuning) a frozen copy of the backbone in memory.

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
    """What the backbone predicts on the source text of a batch."""

    rows_S: Tensor  # numbers of the rows that hold source text
    is_source_ST: Tensor  # float32: 1 at source tokens, which count, else 0; (S, T - 1)
    logits_STV: Tensor  # empty where no row holds any


@torch.no_grad()
def backbone_logits(
    model: nn.Module, input_ids_BT: Tensor, domain_labels_BT: Tensor, reference: nn.Module | None
) -> BackboneLogits:
    """Run the backbone: `reference`, or `model` with its extension off during this call, without
    dropout."""
    is_source_BT = domain_labels_BT == SOURCE
    rows_S = is_source_BT.any(dim=1).nonzero().squeeze(1)
    logits = torch.empty(0, device=input_ids_BT.device)
    if len(rows_S):
        modules = list(model.modules())
        with temporarily(modules, "training", False), as_backbone(model, reference) as backbone:
            logits = backbone(input_ids=input_ids_BT[rows_S], use_cache=False).logits
    return BackboneLogits(rows_S, is_source_BT[rows_S, :-1].float(), logits)


def kl_sum(logits_BTV: Tensor, backbone: BackboneLogits) -> Tensor:
    """KL(backbone || model) in nats, summed over the source tokens that have a next one."""
    if not len(backbone.rows_S):
        return logits_BTV.new_zeros((), dtype=torch.float32)
    vocabulary = backbone.logits_STV.shape[-1]  # new tokens have no part in its expectation
    log_probs = _log_probs(logits_BTV[backbone.rows_S])[..., :vocabulary]
    kl_ST = kl_nats(log_probs, _log_probs(backbone.logits_STV))
    return (kl_ST * backbone.is_source_ST).sum()


def _log_probs(logits: Any) -> Tensor:
    return torch.log_softmax(logits[:, :-1].float(), dim=-1)
