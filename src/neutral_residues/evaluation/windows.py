"""Windows over a stream of tokens: each token is a target exactly once, all windows are equally long.

Suffixes: B windows, T inputs of a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Targets `start` to `end` (not included) of a stream, of which those from `scored_from` on are
    scored."""

    start: int
    end: int
    scored_from: int


def windows(num_tokens: int, *, context_tokens: int, stride_tokens: int) -> Iterator[Window]:
    """Windows that score each of `num_tokens` tokens once, in order; all are equally long."""
    end = min(context_tokens, num_tokens)
    yield Window(0, end, 0)
    while end < num_tokens:
        scored_from, end = end, min(end + stride_tokens, num_tokens)
        yield Window(end - context_tokens, end, scored_from)


def window_rows(
    tokens: NDArray[Any], batch: Sequence[Window], *, end_of_text: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets of equally long windows, each (B, T) int64: input t is the token before
    target t, `end_of_text` before the first one of the stream."""
    targets = np.stack([tokens[w.start : w.end] for w in batch]).astype(np.int64)
    before = [end_of_text if w.start == 0 else int(tokens[w.start - 1]) for w in batch]
    inputs = np.concatenate([np.array(before, dtype=np.int64)[:, None], targets[:, :-1]], axis=1)
    return torch.from_numpy(inputs), torch.from_numpy(targets)
