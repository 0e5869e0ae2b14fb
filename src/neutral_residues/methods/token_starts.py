"""Initial rows of new tokens in the embeddings and in the output head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neutral_residues.tuner.embeddings import piece_means


class StartRows(NamedTuple):
    """The initial rows of N new tokens, on the CPU in float32."""

    embeddings_ND: Tensor  # outputs of the embeddings module, with its scale where it has one
    head_rows_ND: Tensor  # rows of the head's weight


@torch.no_grad()
def mean_of_pieces(model: PreTrainedModel, pieces: Sequence[Sequence[int]]) -> StartRows:
    """For each new token, the mean of the embeddings, and of the head's rows, of the backbone's
    tokens that spell the same text (`pieces`)."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return StartRows(
        piece_means(pieces, lambda ids: embeddings(ids.to(model.device))),
        piece_means(pieces, head.weight.__getitem__),
    )
