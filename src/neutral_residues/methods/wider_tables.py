"""New tokens for methods that have none of their own: more rows in the backbone's two tables, as
people extend a vocabulary by hand. The rows train; the new tokens get a share of the probabilities
everywhere, so nothing keeps the source as it was."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neutral_residues.methods.token_starts import StartRows


def widen_tables(model: PreTrainedModel, num_tokens: int) -> None:
    """Give embeddings and head, in place, rows for so many new tokens, behind all others."""
    old = _tables(model)[0].shape[0]
    model.resize_token_embeddings(old + num_tokens, mean_resizing=False)


@torch.no_grad()
def start_rows(model: PreTrainedModel, rows: StartRows) -> None:
    """Start the new rows of wider tables from these; a tied table from those of the embeddings."""
    embeddings = model.get_input_embeddings()
    for_tables = (rows.embeddings_ND / _scale(embeddings), rows.head_rows_ND)
    for table, start_ND in zip(_tables(model), for_tables, strict=False):
        table[-len(start_ND) :] = start_ND.to(table)


def _scale(embeddings: nn.Module) -> float:
    """What a table's rows are multiplied by where the embeddings module puts them out."""
    weight = embeddings.weight
    assert isinstance(weight, Tensor)
    ids = torch.arange(min(256, len(weight)), device=weight.device)
    return float(embeddings(ids).float().norm() / weight[ids].float().norm())


def new_rows(model: PreTrainedModel, num_tokens: int) -> dict[str, list[int]]:
    """The rows of new tokens by the name of their table, as PEFT's `trainable_token_indices`."""
    tables = {id(table) for table in _tables(model)}
    names = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.Linear) and id(module.weight) in tables
    ]
    # PEFT trains the head's rows with those of the embeddings where they are tied.
    tied = len(tables) == 1
    last = len(_tables(model)[0])
    ids = list(range(last - num_tokens, last))
    return dict.fromkeys(names[:1] if tied else names, ids)


def num_row_weights(model: PreTrainedModel, num_tokens: int) -> int:
    """Number of weights in the new rows of the tables."""
    return sum(num_tokens * table.shape[1] for table in _tables(model))


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights of embeddings and head, once where they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(it.weight): it.weight for it in modules if it is not None}
    return list(found.values())
