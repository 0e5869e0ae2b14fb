"""Sliding windows over a stream of tokens, in which each token is scored once.

Where we choose: windows have `context_tokens` inputs and slide by `stride_tokens`. The first window
scores all of its targets, each later one only its last `stride_tokens`, which are new, so that
these have at least context - stride tokens before them. The last window ends with the stream and
overlaps the previous one more, so that all windows have the same length.

Suffixes: B windows, T inputs of a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neutral_residues.errors import UserError

# Maximum number of logits in one forward pass: half a GiB in float32.
LOGITS_PER_BATCH = 2**27


class Window(NamedTuple):
    """Targets `start` to `end` (excluded) of a stream, of which those from `scored_from` on are
    scored."""

    start: int
    end: int
    scored_from: int


@dataclass(frozen=True)
class Windows:
    """How streams are split into windows. Raises a UserError for a number out of range."""

    end_of_text: int  # id of the token from which the first token of a stream is predicted
    context_tokens: int  # inputs of a window
    stride_tokens: int  # scored targets of each window after the first
    batch_rows: int = 8  # windows per forward pass; changes results by rounding only

    def __post_init__(self) -> None:
        if self.context_tokens < 1:
            raise UserError("context_tokens", got=self.context_tokens, allowed="1 or more")
        if self.batch_rows < 1:
            raise UserError("batch_rows", got=self.batch_rows, allowed="1 or more")
        if not 1 <= self.stride_tokens <= self.context_tokens:
            allowed = f"1 to context_tokens ({self.context_tokens})"
            raise UserError("stride_tokens", got=self.stride_tokens, allowed=allowed)

    def for_vocabulary(self, size: int) -> "Windows":
        """The same windows with smaller batches if the logits of a batch would take too much
        memory: 16 windows of 2,048 tokens with a vocabulary of 128,256 are 16 GiB in float32."""
        rows = LOGITS_PER_BATCH // (self.context_tokens * size)
        return replace(self, batch_rows=max(1, min(self.batch_rows, rows)))

    def batches(self, num_tokens: int) -> Iterator[list[Window]]:
        """Yield batches of windows that score each of `num_tokens` tokens once, in order."""
        end = min(self.context_tokens, num_tokens)
        batch = [Window(0, end, 0)]
        while end < num_tokens:
            if len(batch) == self.batch_rows:
                yield batch
                batch = []
            scored_from, end = end, min(end + self.stride_tokens, num_tokens)
            batch.append(Window(end - self.context_tokens, end, scored_from))
        yield batch

    def rows(self, tokens: NDArray[Any], batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of windows, each (B, T) int64; input t is the token before target
        t."""
        targets = np.stack([tokens[w.start : w.end] for w in batch]).astype(np.int64)
        before = [self.end_of_text if w.start == 0 else int(tokens[w.start - 1]) for w in batch]
        first_B1 = np.array(before, dtype=np.int64)[:, None]
        inputs = np.concatenate([first_B1, targets[:, :-1]], axis=1)
        return torch.from_numpy(inputs), torch.from_numpy(targets)
