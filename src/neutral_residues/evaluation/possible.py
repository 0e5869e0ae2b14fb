"""Tokenises text such that an extended model with new tokens can generate it.

While its gate is exactly 0, such a model gives new tokens probability 0: when it switches from
English to Ukrainian, it uses the backbone's tokens until its gate opens, and new tokens after that.
Therefore new tokens with probability 0 are replaced by the backbone's tokens that spell the same
text (their pieces) before text is scored. This can close or open later gates, so that it is
repeated until no impossible token is left; it ends because every round replaces new tokens.

Only the gates are computed for this, not the model.

Suffixes: B windows, T inputs of a window.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.windows import Windows
from neutral_residues.tuner.embeddings import EmbeddingsLayer, embeddings_layer

Pieces = Sequence[Sequence[int]]
"""For each new token, the ids of the backbone's tokens that spell the same text."""


def possible_stream(
    model: nn.Module, stream: TokenStream, windows: Windows, pieces: Pieces
) -> TokenStream:
    """`stream` with tokens that `model` can generate in these windows. Unchanged if the model has
    no new tokens, or gives them a probability with closed gates too."""
    layer = embeddings_layer(model)
    if layer is None or not layer.can_forbid_tokens:
        return stream
    while (impossible := _impossible(layer, stream, windows)).any():
        stream = cut_tokens(stream, impossible, layer.first_new_id, pieces)
    return stream


def _impossible(layer: EmbeddingsLayer, stream: TokenStream, windows: Windows) -> NDArray[np.bool_]:
    """(N,) whether each token of the stream is a new token that is predicted with a gate of
    exactly 0."""
    found = np.zeros(stream.num_tokens, dtype=bool)
    for batch in windows.batches(stream.num_tokens):
        inputs_BT, targets_BT = windows.rows(stream.tokens, batch)
        impossible_BT = layer.forbids_new_tokens(inputs_BT) & (targets_BT >= layer.first_new_id)
        for window, impossible_T in zip(batch, impossible_BT.numpy(), strict=True):
            scored = impossible_T[window.scored_from - window.start :]
            found[window.scored_from : window.end] = scored
    return found


def cut_tokens(
    stream: TokenStream, chosen: NDArray[np.bool_], first_new_id: int, pieces: Pieces
) -> TokenStream:
    """`stream` with the `chosen` new tokens replaced by their pieces."""
    if not chosen.any():
        return stream
    lengths = np.ones(stream.num_tokens, dtype=np.int64)
    numbers = stream.tokens[chosen].astype(np.int64) - first_new_id
    replaced = [pieces[number] for number in numbers.tolist()]
    lengths[chosen] = [len(tokens) for tokens in replaced]
    tokens = np.repeat(stream.tokens, lengths)
    tokens[np.repeat(chosen, lengths)] = np.concatenate([np.asarray(it) for it in replaced])
    ends = np.cumsum(lengths)[stream.document_ends - 1]
    predicted = stream.predicted
    if predicted is not None:
        predicted = np.repeat(predicted, lengths)
    return replace(stream, tokens=tokens, document_ends=ends, folder=None, predicted=predicted)


def possible_tokens(
    model: nn.Module, context: Sequence[int], tokens: Sequence[int], pieces: Pieces
) -> list[int]:
    """`tokens` after `context` (at least one token), with impossible new tokens replaced as in
    `possible_stream`."""
    layer, found = embeddings_layer(model), list(tokens)
    if layer is None or not layer.can_forbid_tokens:
        return found
    while True:
        row = torch.tensor([[*context, *found]])
        forbidden = layer.forbids_new_tokens(row[:, :-1])[0]
        impossible = forbidden & (row[0, 1:] >= layer.first_new_id)
        behind = impossible[len(context) - 1 :].tolist()
        if not any(behind):
            return found
        found = [
            piece
            for token, is_impossible in zip(found, behind, strict=True)
            for piece in (pieces[token - layer.first_new_id] if is_impossible else [token])
        ]
