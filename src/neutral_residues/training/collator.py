"""A wrapper for data collators that pads or packs `domain_labels` exactly as `input_ids`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neutral_residues.data.labels import DOMAIN_LABELS, IGNORE, SOURCE, TARGET
from neutral_residues.errors import UserError


class DomainLabelCollator:
    """Wraps a data collator, which need not know `domain_labels`: they are padded with -100 or
    packed as it pads or packs `input_ids`. Batches in which no row has labels are not changed.

    Raises:
        UserError: when called, if only some rows have labels, a label is unknown, labels do not fit
            the tokens, or the collator changed the order or number of tokens.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        labelled = [feature for feature in features if feature.get(DOMAIN_LABELS) is not None]
        others = [{k: v for k, v in f.items() if k != DOMAIN_LABELS} for f in features]
        batch = self.collator(others)
        if not labelled:
            return batch
        if len(labelled) < len(features):
            raise UserError(f"{DOMAIN_LABELS} is missing in some rows", do="give it in every row")
        ids = [torch.as_tensor(feature["input_ids"]) for feature in features]
        rows = zip(features, ids, strict=True)
        labels = [_token_labels(given[DOMAIN_LABELS], len(tokens)) for given, tokens in rows]
        aligned = _aligned(labels, ids, batch["input_ids"], batch.get("attention_mask"))
        return {**batch, DOMAIN_LABELS: aligned}


def _token_labels(given: Any, num_tokens: int) -> Tensor:
    what, allowed = f"{DOMAIN_LABELS} of a row", f"{SOURCE} (source), {TARGET} (target) or {IGNORE}"
    try:
        labels = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(what, got=given, allowed=allowed) from error
    known = (labels == SOURCE) | (labels == TARGET) | (labels == IGNORE)
    if not known.all():
        raise UserError(what, got=labels[~known][0].item(), allowed=allowed)
    if labels.dim() and labels.shape != (num_tokens,):
        shape = " x ".join(str(size) for size in labels.shape)
        raise UserError(what, got=f"{shape} for {num_tokens} tokens", allowed="one each")
    return labels.long().expand(num_tokens)


def _aligned(
    labels: list[Tensor], ids: list[Tensor], batch_ids: Tensor, attention_mask: Tensor | None
) -> Tensor:
    """Labels (B, T): at each token of `ids` its label, wherever the collator put it in `batch_ids`
    (B, T); IGNORE elsewhere."""
    has_mask = attention_mask is not None and attention_mask.shape == batch_ids.shape
    mask = attention_mask if has_mask else None
    tokens = torch.cat(ids).to(batch_ids.dtype)
    for keep in _placements(ids, batch_ids, mask):
        if keep.shape == batch_ids.shape and torch.equal(batch_ids[keep], tokens):
            placed = torch.full_like(batch_ids, IGNORE, dtype=torch.long)
            placed[keep] = torch.cat(labels)
            return placed if mask is None else placed.masked_fill(mask == 0, IGNORE)
    raise UserError(
        f"the collator cut, moved or changed tokens, so {DOMAIN_LABELS} no longer fit them",
        do="truncate and order the rows before training",
    )


def _placements(ids: list[Tensor], batch_ids: Tensor, mask: Tensor | None) -> list[Tensor]:
    """Masks (B, T) of where the tokens may be: on the left or right of each row, or all in one row
    (packed). The likelier one is first."""
    if all(len(row) == batch_ids.shape[1] for row in ids):
        return [torch.ones(len(ids), batch_ids.shape[1], dtype=torch.bool)]
    if batch_ids.shape[0] == len(ids):
        lengths = torch.tensor([[len(row)] for row in ids])
    else:
        lengths = torch.tensor([[sum(map(len, ids))]])
    position = torch.arange(batch_ids.shape[1])
    left, right = position < lengths, position >= batch_ids.shape[1] - lengths
    # A token may be equal to the padding token, so both may match. If the attention mask has ones
    # in the whole last column, the padding is on the left.
    return [right, left] if mask is not None and mask[:, -1].all() else [left, right]
