"""New tokens for methods that have none of their own: more rows in the backbone's two tables, as
people extend a vocabulary by hand. The rows train; the new tokens get a share of the probabilities
everywhere, so nothing keeps the source as it was."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from neutral_residues.tuner.embeddings import piece_means


def widen_tables(model: PreTrainedModel, num_tokens: int) -> None:
    """Give embeddings and head, in place, rows for so many new tokens, behind all others."""
    old = _tables(model)[0].shape[0]
    model.resize_token_embeddings(old + num_tokens, mean_resizing=False)


@torch.no_grad()
def start_rows(model: PreTrainedModel, pieces: Sequence[Sequence[int]]) -> None:
    """Start each new row of wider tables from the mean of the rows of its pieces."""
    for table in _tables(model):
        table[-len(pieces) :] = piece_means(pieces, table.__getitem__).to(table)


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
    """How many weights the rows of so many tokens have."""
    return sum(num_tokens * table.shape[1] for table in _tables(model))


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """The weights of embeddings and head, once where they are tied."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    found = {id(it.weight): it.weight for it in modules if it is not None}
    return list(found.values())
