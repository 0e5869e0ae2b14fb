"""New tokens as more rows of the backbone's embeddings and head (its two tables), the usual way to
extend a vocabulary, for LoRA and fine-tuning. The new rows train. New tokens get some probability
after every text, so predictions on source text change too."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neutral_residues.methods.token_starts import StartRows


def widen_tables(model: PreTrainedModel, num_tokens: int) -> None:
    """Append `num_tokens` rows to embeddings and head, in place; `start_rows` initialises them."""
    old = _tables(model)[0].shape[0]
    model.resize_token_embeddings(old + num_tokens, mean_resizing=False)


@torch.no_grad()
def start_rows(model: PreTrainedModel, rows: StartRows) -> None:
    """Initialise the rows that `widen_tables` appended; tied tables take the rows of the
    embeddings."""
    embeddings = model.get_input_embeddings()
    for_tables = (rows.embeddings_ND / _scale(embeddings), rows.head_rows_ND)
    for table, start_ND in zip(_tables(model), for_tables, strict=False):
        table[-len(start_ND) :] = start_ND.to(table)


def _scale(embeddings: nn.Module) -> float:
    """The factor by which the embeddings module multiplies its weight's rows (Gemma does)."""
    weight = embeddings.weight
    assert isinstance(weight, Tensor)
    ids = torch.arange(min(256, len(weight)), device=weight.device)
    return float(embeddings(ids).float().norm() / weight[ids].float().norm())


def new_rows(model: PreTrainedModel, num_tokens: int) -> dict[str, list[int]]:
    """Table name -> ids of the new tokens, for PEFT's `trainable_token_indices`."""
    tables = {id(table) for table in _tables(model)}
    names = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.Linear) and id(module.weight) in tables
    ]
    # If the tables are tied, PEFT trains the head's rows with those of the embeddings.
    tied = len(tables) == 1
    last = len(_tables(model)[0])
    ids = list(range(last - num_tokens, last))
    return dict.fromkeys(names[:1] if tied else names, ids)


def num_row_weights(model: PreTrainedModel, num_tokens: int) -> int:
    """Number of weights in the new rows of embeddings and head."""
    return sum(num_tokens * table.shape[1] for table in _tables(model))


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights of embeddings and head; only one tensor if they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(it.weight): it.weight for it in modules if it is not None}
    return list(found.values())
