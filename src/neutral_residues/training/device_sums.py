"""Sums for the log that stay on the GPU until a log line is due."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class DeviceSums:
    """Named sums that stay on the device until `flush`, so that no step waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    def add(self, key: str, value: Tensor) -> None:
        """Add `value` to the sum named `key`. A key's values have one shape, and all ranks use the
        same keys."""
        # A copy, because the memory of a value from a compiled model may be used again.
        self._sums[key] = self._sums[key] + value if key in self._sums else value.clone()

    def flush(self, accelerator: Any) -> dict[str, Any]:
        """The sums over all ranks since the last flush, as numbers or lists of numbers. Resets
        them."""
        sums, self._sums = self._sums, {}
        return {key: accelerator.reduce(sums[key], "sum").tolist() for key in sorted(sums)}

    def state(self, accelerator: Any) -> dict[str, Any]:
        """The sums over all ranks, for a checkpoint: name -> (dtype, values). They are kept."""
        state = {}
        for key, value in sorted(self._sums.items()):
            total = accelerator.reduce(value.clone(), "sum")
            state[key] = [str(total.dtype).removeprefix("torch."), total.tolist()]
        return state

    def load(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore the result of `state`. Call it on one rank only, as the sums are those of all
        ranks."""
        self._sums = {
            k: torch.tensor(v, dtype=getattr(torch, t), device=device)
            for k, (t, v) in state.items()
        }
