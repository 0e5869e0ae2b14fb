"""What a run costs: weights and disk counted, memory estimated or measured."""

import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neutral_residues.config.run import RunConfig
from neutral_residues.results.record import Cost
from neutral_residues.tuner.blocks import count_backbone_weights, num_weights_in

ADAM_BYTES_PER_WEIGHT = 4 + 4 + 8
"""A trained weight in float32: itself, its gradient, AdamW's two moments."""


@dataclass(frozen=True)
class WeightCount:
    """Numbers of weights.

    Attributes:
        num_backbone_weights: embeddings counted.
        num_new_weights: added to the backbone.
        num_trained_weights: with a gradient.
    """

    num_backbone_weights: int
    num_new_weights: int = 0
    num_trained_weights: int = 0

    @classmethod
    def of_backbone(cls, backbone: nn.Module) -> "WeightCount":
        """Before anything is attached."""
        return cls(num_backbone_weights=count_backbone_weights(backbone))

    def with_model(self, model: nn.Module) -> "WeightCount":
        """After the method is attached."""
        total = sum(num_weights_in(parameter) for parameter in model.parameters())
        trained = sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        )
        return replace(
            self, num_new_weights=total - self.num_backbone_weights, num_trained_weights=trained
        )

    @property
    def budget(self) -> float:
        """New weights as a share of the backbone's."""
        return self.num_new_weights / self.num_backbone_weights

    def to_record(
        self, *, tokens: int, seconds: float | None, saves_whole_model: bool, **measured: Any
    ) -> Cost:
        """For the record of a run that trained on `tokens` in `seconds`, if all of it was timed;
        the rest as given."""
        return Cost(
            tokens=tokens,
            seconds=seconds,
            tokens_per_second=tokens / seconds if seconds else None,
            trainable_weights=self.num_trained_weights,
            new_weights=self.num_new_weights,
            stored_weights=self.num_new_weights + saves_whole_model * self.num_backbone_weights,
            backbone_weights=self.num_backbone_weights,
            **measured,
        )

    def training_memory_bytes(self, config: RunConfig, *, model_config: Any, bf16: bool) -> int:
        """Rough estimate of what training adds at its peak: weights, AdamW, activations of one
        forward pass, logits.

        Activations are counted as 14 model widths and 4 FFN widths per token and layer, logits
        three times in float32. What a method stores of its own, kernels and the allocator add to
        it: it can be a third too low (LAB.md, "why a number moved, and advice held against real
        runs"). A trial run measures instead.
        """
        frozen = self.num_backbone_weights + self.num_new_weights - self.num_trained_weights
        weights = frozen * (2 if bf16 else 4) + self.num_trained_weights * ADAM_BYTES_PER_WEIGHT
        tokens = config.training.batch_rows * config.data.block_tokens
        hidden = model_config.hidden_size
        ffn = getattr(model_config, "intermediate_size", None) or 4 * hidden
        layers = 1 if config.training.gradient_checkpointing else model_config.num_hidden_layers
        activations = tokens * layers * (14 * hidden + 4 * ffn) * (2 if bf16 else 4)
        return weights + activations + tokens * model_config.vocab_size * 4 * 3

    def checkpoint_bytes(self) -> int:
        """One checkpoint: the trained weights and AdamW's moments in float32."""
        return self.num_trained_weights * 12


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far: of the GPU's allocator, or of this process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # `getrusage` on Linux starts at the size of the parent process; this does not.
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
