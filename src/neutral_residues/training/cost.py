"""Cost of a run: number of weights, and memory, estimated or measured."""

import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neutral_residues.config.run import RunConfig
from neutral_residues.tuner.blocks import num_weights_in

ADAM_BYTES_PER_WEIGHT = 4 + 4 + 8
"""Bytes of a trained weight in float32: itself, its gradient, the two moments of AdamW (Muon has
one)."""


@dataclass(frozen=True)
class WeightCount:
    """Numbers of weights.

    Attributes:
        num_backbone_weights: of the backbone, with its embeddings.
        num_new_weights: added to the backbone.
        num_trained_weights: trainable ones (`requires_grad`).
    """

    num_backbone_weights: int
    num_new_weights: int = 0
    num_trained_weights: int = 0

    def with_model(self, model: nn.Module) -> "WeightCount":
        """The count for `model`, the backbone with a method attached."""
        parameters = list(model.parameters())
        total = sum(map(num_weights_in, parameters))
        return WeightCount(
            self.num_backbone_weights,
            num_new_weights=total - self.num_backbone_weights,
            num_trained_weights=sum(p.numel() for p in parameters if p.requires_grad),
        )

    @property
    def budget(self) -> float:
        """New weights as a share of the backbone's."""
        return self.num_new_weights / self.num_backbone_weights


def training_memory_bytes(
    weights: WeightCount, config: RunConfig, model_config: Any, *, bf16: bool
) -> int:
    """Rough estimate of the peak memory of training on one device, in bytes: weights, AdamW's
    state, activations of one forward pass, logits.

    Activations are counted as 14 hidden sizes and 4 FFN widths per token and layer, logits three
    times in float32. Buffers of the method, kernels and the allocator are not counted, so the
    estimate can be a third too low (LAB.md, "why a number moved, and advice held against real
    runs"). A trial run measures instead.
    """
    trained, size = weights.num_trained_weights, 2 if bf16 else 4
    frozen = weights.num_backbone_weights + weights.num_new_weights - trained
    tokens = config.training.batch_rows * config.data.block_tokens
    hidden = model_config.hidden_size
    ffn = getattr(model_config, "intermediate_size", None) or 4 * hidden
    layers = 1 if config.training.gradient_checkpointing else model_config.num_hidden_layers
    activations = tokens * layers * (14 * hidden + 4 * ffn) * size
    logits = tokens * (model_config.vocab_size + config.vocabulary.size) * 4 * 3
    return frozen * size + trained * ADAM_BYTES_PER_WEIGHT + activations + logits


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory so far, in bytes: of CUDA's allocator on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, `getrusage` starts at the size of the parent process; VmHWM does not.
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
