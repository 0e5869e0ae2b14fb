"""Sums for the log that do not make the device wait."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class DeviceSums:
    """Named sums that stay on the device until they are read, so that no step waits for it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, key: str, value: Tensor) -> None:
        """Add `value` (always of one shape) to the sum named `key`, the same keys on all ranks."""
        # A copy, because the memory of a value from a compiled model may be used again.
        self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()

    def flush(self, accelerator: Any) -> dict[str, Any]:
        """The sums over all ranks since the last flush, as numbers or lists of numbers."""
        sums, self._sums = self._sums, {}
        return {key: accelerator.reduce(sums[key], "sum").tolist() for key in sorted(sums)}

    def state(self, accelerator: Any) -> dict[str, Any]:
        """The sums over all ranks, for a checkpoint; nothing is flushed."""
        state = {}
        for key, value in sorted(self._sums.items()):
            total = accelerator.reduce(value.clone(), "sum")
            state[key] = [str(total.dtype).removeprefix("torch."), total.tolist()]
        return state

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from `state()`: on one rank the sums, on the others nothing."""
        self._sums = {
            k: torch.tensor(v, dtype=getattr(torch, t), device=device)
            for k, (t, v) in state.items()
        }
