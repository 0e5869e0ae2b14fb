"""Windows over a stream of tokens: each token is a target once, and all windows are equally long.

Where we choose: windows of `context_tokens` inputs slide by `stride_tokens`. The first scores all
its targets, each later one its last `stride_tokens`, which no earlier one has scored; so those have
at least context - stride tokens before them. The last window is moved back to end with the stream.

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

# Logits of one model in one forward pass: half a GiB in float32.
LOGITS_PER_BATCH = 2**27


class Window(NamedTuple):
    """Targets `start` to `end` (excluded) of a stream; those from `scored_from` on are scored."""

    start: int
    end: int
    scored_from: int


@dataclass(frozen=True)
class Windows:
    """How streams are cut into windows; a UserError for a number out of range."""

    end_of_text: int  # token before the first one of a stream
    context_tokens: int  # inputs of a window
    stride_tokens: int  # new targets of each further window
    batch_rows: int = 8  # windows at a time; changes results by float noise only

    def __post_init__(self) -> None:
        if self.context_tokens < 1:
            raise UserError("context_tokens", got=self.context_tokens, allowed="1 or more")
        if self.batch_rows < 1:
            raise UserError("batch_rows", got=self.batch_rows, allowed="1 or more")
        if not 1 <= self.stride_tokens <= self.context_tokens:
            allowed = f"1 to context_tokens ({self.context_tokens})"
            raise UserError("stride_tokens", got=self.stride_tokens, allowed=allowed)

    def for_vocabulary(self, size: int) -> "Windows":
        """The same windows with fewer rows, if the logits of a batch would not fit into memory: 16
        windows of 2,048 tokens and a vocabulary of 128,256 are 16 GiB in float32."""
        rows = LOGITS_PER_BATCH // (self.context_tokens * size)
        return replace(self, batch_rows=max(1, min(self.batch_rows, rows)))

    def batches(self, num_tokens: int) -> Iterator[list[Window]]:
        """Windows that score each of `num_tokens` tokens once, in order; all are equally long."""
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
        """Inputs and targets of windows, each (B, T) int64: input t comes before target t."""
        targets = np.stack([tokens[w.start : w.end] for w in batch]).astype(np.int64)
        before = [self.end_of_text if w.start == 0 else int(tokens[w.start - 1]) for w in batch]
        first_B1 = np.array(before, dtype=np.int64)[:, None]
        inputs = np.concatenate([first_B1, targets[:, :-1]], axis=1)
        return torch.from_numpy(inputs), torch.from_numpy(targets)
