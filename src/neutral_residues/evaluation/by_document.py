"""Measures each document separately: the nats of its tokens, and the gate logits at each of them.

In `evaluate.py`, windows contain the end of one document and the beginning of the next. Here they
contain one document only, so that the result of a document does not depend on others.

Suffixes: B windows, T inputs of a window, N all tokens of a stream, D its documents.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.evaluate import last_logits, vocabulary_size
from neutral_residues.evaluation.inference import inference, untouched_rows
from neutral_residues.evaluation.windows import Window, Windows
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.gates import gates, observe_gates, reads_text

OnTokens = Callable[[int], object]
"""Called after each batch with its number of tokens."""


def ignore(num_tokens: int) -> None:
    """The `OnTokens` that does nothing."""


class Batch(NamedTuple):
    """Windows of equal length, of one or several documents."""

    inputs_BT: Tensor
    targets_BT: Tensor
    places: list[tuple[int, int]]  # of each window: range of scored tokens in the stream, [a, b)

    def scored(self, row: int, values_BT: Tensor) -> Tensor:
        """From one value per input, those of the tokens that window `row` scores (its last
        ones)."""
        first, last = self.places[row]
        return values_BT[row, values_BT.shape[1] - (last - first) :]


def document_batches(
    stream: TokenStream, windows: Windows, numbers: Iterable[int] | None = None
) -> Iterator[Batch]:
    """Yield batches of windows over single documents (all of `stream`, or those in `numbers`) that
    score each token once, longest windows first."""
    by_length: defaultdict[int, list[tuple[int, Window]]] = defaultdict(list)
    for number in range(stream.num_documents) if numbers is None else numbers:
        for batch in windows.batches(len(stream.document(number))):
            for window in batch:
                by_length[window.end - window.start].append((number, window))
    for _, found in sorted(by_length.items(), reverse=True):
        for first in range(0, len(found), windows.batch_rows):
            yield _batch(stream, windows, found[first : first + windows.batch_rows])


def _batch(stream: TokenStream, windows: Windows, found: list[tuple[int, Window]]) -> Batch:
    starts = np.concatenate([[0], stream.document_ends[:-1]])
    rows = [windows.rows(stream.document(number), [window]) for number, window in found]
    places = [(int(starts[n]) + w.scored_from, int(starts[n]) + w.end) for n, w in found]
    inputs, targets = zip(*rows, strict=True)
    return Batch(torch.cat(inputs), torch.cat(targets), places)


def document_nats(
    model: nn.Module,
    stream: TokenStream,
    windows: Windows,
    *,
    backbone_D: NDArray[np.float64] | None = None,
    on_tokens: OnTokens = ignore,
) -> NDArray[np.float64]:
    """(D,) nats of each document under `model`, with its extension active or disabled as it is,
    without autocast.

    Args:
        backbone_D: nats of each document under the backbone, if known. They are used for documents
            on which no gate opens, which the model then does not read.
    """
    nats_N = np.zeros(stream.num_tokens)
    windows = windows.for_vocabulary(vocabulary_size(model))
    with inference(model):
        is_known_D = np.zeros(stream.num_documents, dtype=bool)
        if backbone_D is not None:
            documents = map(stream.document, range(stream.num_documents))
            is_known_D[:] = [_is_untouched(model, it, windows) for it in documents]
            on_tokens(int(np.diff(stream.document_ends, prepend=0)[is_known_D].sum()))
        for batch in document_batches(stream, windows, np.flatnonzero(~is_known_D).tolist()):
            longest = max(last - first for first, last in batch.places)
            logits_BKV = last_logits(model, batch.inputs_BT, longest)
            for row, (first, last) in enumerate(batch.places):
                targets_K = batch.scored(row, batch.targets_BT).to(logits_BKV.device)
                logits_KV = logits_BKV[row, longest - (last - first) :].float()
                losses_K = F.cross_entropy(logits_KV, targets_K, reduction="none")
                nats_N[first:last] = losses_K.cpu().double().numpy()
            on_tokens(sum(last - first for first, last in batch.places))
    nats_D = per_document(stream, nats_N)
    return nats_D if backbone_D is None else np.where(is_known_D, backbone_D, nats_D)


def _is_untouched(model: nn.Module, tokens: NDArray[Any], windows: Windows) -> bool:
    """Whether all gates stay closed in all windows of a document."""
    batches = windows.batches(len(tokens))
    return all(bool(untouched_rows(model, windows.rows(tokens, it)[0]).all()) for it in batches)


def per_document(stream: TokenStream, values_N: NDArray[Any]) -> NDArray[np.float64]:
    """(D,) sum of `values_N` over the tokens of each document, including its end-of-text token."""
    starts = np.concatenate([[0], stream.document_ends[:-1]])
    return np.add.reduceat(values_N.astype(np.float64), starts)


def gate_logits(
    model: nn.Module,
    stream: TokenStream,
    windows: Windows,
    *,
    name: str = "default",
    on_tokens: OnTokens = ignore,
) -> dict[str, NDArray[np.float32]]:
    """Name of each gate of extension `name` -> (N,) its logits, before thresholds, at the position
    where each token is predicted. For a gate that reads tokens only the embeddings module runs, on
    whole documents."""
    own = gates(model, name)
    found_N = {key: np.zeros(stream.num_tokens, dtype=np.float32) for key in own}
    # The module that computes the gates, if one gate reads tokens for all layers.
    reader = embeddings_layer(model) if reads_text(model, name) else None
    device = next(model.parameters()).device
    if reader is None:
        windows = windows.for_vocabulary(vocabulary_size(model))
    else:
        longest = int(np.diff(stream.document_ends, prepend=0).max())
        windows = replace(windows, context_tokens=longest, stride_tokens=longest)
    with inference(model), observe_gates(model, name) as seen:
        for batch in document_batches(stream, windows):
            inputs_BT = batch.inputs_BT.to(device)
            if reader is not None:
                reader(inputs_BT)
            else:
                model(input_ids=inputs_BT, use_cache=False)
            for key, logits in seen.items():
                logits_BT = logits.float().reshape(inputs_BT.shape).cpu()
                for row, (first, last) in enumerate(batch.places):
                    found_N[key][first:last] = batch.scored(row, logits_BT).numpy()
            on_tokens(sum(last - first for first, last in batch.places))
    return found_N
