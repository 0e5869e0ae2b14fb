"""Sums for the log keep type and value over a resume."""

import json

import torch
from torch import Tensor

from neutral_residues.training.device_sums import DeviceSums


def test_device_sums_keep_type_and_value() -> None:
    class OneRank:
        def reduce(self, value: Tensor, reduction: str) -> Tensor:
            return value

    sums, value = DeviceSums(), torch.tensor([1 / 3, 2.0], dtype=torch.float64)
    sums.add("a", value)
    value.zero_()  # a compiled model may use its outputs' memory again
    resumed = DeviceSums()
    resumed.load(json.loads(json.dumps(sums.state(OneRank()))), torch.device("cpu"))
    for each in (sums, resumed):
        each.add("a", torch.tensor([1.0, 1.0], dtype=torch.float64))
        assert each.flush(OneRank()) == {"a": [1 / 3 + 1, 3.0]}
        assert each.flush(OneRank()) == {}
