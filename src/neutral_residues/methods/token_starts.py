"""What new tokens start from, at both ends of a backbone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from neutral_residues.tuner.embeddings import piece_means


class StartRows(NamedTuple):
    """A row for each new token at either end; on the CPU, in float32."""

    embeddings_ND: Tensor  # what the embeddings module puts out
    head_rows_ND: Tensor  # what the final hidden state is multiplied by


@torch.no_grad()
def mean_of_pieces(model: PreTrainedModel, pieces: Sequence[Sequence[int]]) -> StartRows:
    """At both ends the mean over the backbone's tokens for the same text."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    return StartRows(
        piece_means(pieces, lambda ids: embeddings(ids.to(model.device))),
        piece_means(pieces, head.weight.__getitem__),
    )
