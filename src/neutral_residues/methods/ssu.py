"""SSU: full continued pretraining in which the columns that matter most on source text are frozen.

Yamaguchi et al. 2026, *Mitigating Catastrophic Forgetting in Target Language Adaptation of LLMs via
Source-Shielded Updates*, arXiv 2512.04844. Before training, each input j of each linear layer of
the decoder's layers gets a score from source text, and the half of the columns with the highest
scores is frozen. As in the authors' code:

    score(j) = |W[:, j]| (Euclidean) x mean over source tokens of x[j]^2

Embeddings, head and everything else train in full.

Where we choose: norms train in full too (the authors freeze half of each). A frozen column gets no
gradient, and weight decay would still move it, so the table of methods fixes that at 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neutral_residues.methods.low_rank import linear_modules
from neutral_residues.tuner.routing import temporarily

FROZEN_SHARE = 0.5
"""Share of the columns of a matrix that are frozen."""
ROWS_AT_A_TIME = 16


@torch.no_grad()
def freeze_source_columns(model: nn.Module, source_rows_NT: Tensor) -> None:
    """Freeze the half of the columns with the highest scores on these rows: from now on hooks set
    their gradients to 0.

    Args:
        source_rows_NT: token ids of source text.
    """
    layers = [model.get_submodule(name) for name in linear_modules(model, only_ffn=False)]
    device = next(model.parameters()).device
    modules = list(model.modules())
    with temporarily(modules, "training", False), _sums_of_squares(layers) as squares:  # no dropout
        for batch_BT in source_rows_NT.split(ROWS_AT_A_TIME):
            model(input_ids=batch_BT.to(device), use_cache=False)
    for layer in layers:
        weight: Any = layer.weight
        # Conv1D, GPT-2's linear layer, has a transposed weight.
        outputs = 0 if isinstance(layer, nn.Linear) else 1
        scores_D = weight.norm(dim=outputs) * squares[layer]
        trains_D = torch.ones_like(scores_D)
        trains_D[scores_D.topk(int(FROZEN_SHARE * len(scores_D))).indices] = 0
        weight.register_hook(partial(torch.mul, trains_D.unsqueeze(outputs)))


@contextmanager
def _sums_of_squares(layers: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Layer -> (D,), the sum of x^2 over all tokens that it reads inside the context; inputs have
    the same order by sum as by mean."""
    sums: dict[nn.Module, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        squares_D = inputs[0].float().square().flatten(0, -2).sum(0)
        sums[layer] = sums[layer] + squares_D if layer in sums else squares_D

    handles = [layer.register_forward_pre_hook(add) for layer in layers]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()
