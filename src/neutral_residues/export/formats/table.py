"""The table of export formats: what each can hold, and how it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from neutral_residues.errors import UserError, nearest
from neutral_residues.export.formats.dense import computes_dense, dense_refusal, write_dense
from neutral_residues.export.formats.moe import QWEN2_MOE, QWEN3_NEXT, moe_refusal, write_moe
from neutral_residues.export.formats.remote_code import remote_code_refusal, write_remote_code
from neutral_residues.export.formats.tensors import tensors_refusal, write_tensors
from neutral_residues.export.parts import Parts
from neutral_residues.export.verify import Kind


@dataclass(frozen=True)
class Format:
    """One export format, a row of the table."""

    name: str  # value of `--to`
    title: str
    cannot_hold: Callable[[Parts], str | None]  # the reason why it cannot hold them, or None
    write: Callable[[Parts, Path, torch.dtype], None]  # parts, folder, type of stored weights
    # Whether weights are computed, not copied: in 16 bits they are rounded once more.
    computes: Callable[[Parts], bool] = lambda parts: False
    kind: Kind = "logits"  # what is compared with the original model
    trust_remote_code: bool = False  # loading it runs code from the folder
    merges: bool = False  # it can hold merged LoRA updates
    has_new_tokens: bool = False  # it can hold new tokens of an extension
    has_rule: bool = False  # it can hold several adapters of which one is active at a token

    def refusal(self, parts: Parts) -> str | None:
        """The reason why this format cannot hold these parts, or None if it can."""
        if parts.merged and not self.merges:
            return "its updates are added to the backbone's own matrices, so there is no adapter"
        if parts.new_ids and not self.has_new_tokens:
            return f"its {len(parts.new_ids)} new tokens are not rows of the backbone's tables"
        if parts.strongest_over and not self.has_rule:
            return "of its extensions only the one with the strongest gate is on"
        return self.cannot_hold(parts)

    def check(self, parts: Parts) -> None:
        """Raise a UserError if this format cannot hold these parts; it names formats that can."""
        if reason := self.refusal(parts):
            others = ", ".join(row.name for row in FORMATS if row.refusal(parts) is None)
            what = f"{self.name} cannot hold this extension: {reason}"
            raise UserError(what, do=f"formats that can: {others}")


FORMATS: tuple[Format, ...] = (
    Format(
        "transformers",
        "a model folder with its own modelling code (trust_remote_code)",
        remote_code_refusal,
        write_remote_code,
        trust_remote_code=True,
        has_new_tokens=True,
        has_rule=True,
    ),
    Format(
        "qwen2_moe",
        "a stock Qwen2-MoE model: the old FFN as its one expert, the adapter as gated shared"
        " expert",
        partial(moe_refusal, QWEN2_MOE),
        partial(write_moe, QWEN2_MOE),
        computes=lambda parts: parts.model_type == "gemma",
    ),
    Format(
        "qwen3_next",
        "the same as a stock Qwen3-Next model with full attention in every layer",
        partial(moe_refusal, QWEN3_NEXT),
        partial(write_moe, QWEN3_NEXT),
        computes=lambda parts: True,
    ),
    Format(
        "dense",
        "the backbone's own stock architecture",
        dense_refusal,
        write_dense,
        computes=computes_dense,
        merges=True,
    ),
    Format(
        "safetensors",
        "the adapter alone: tensors, formula and a reference in PyTorch, for any runtime",
        tensors_refusal,
        write_tensors,
        kind="residues",
        has_new_tokens=True,
    ),
)

FORMAT_NAMES = tuple(row.name for row in FORMATS)


def find_format(name: str) -> Format:
    """The format called `name`; a UserError that suggests the nearest name if there is none."""
    row = next((row for row in FORMATS if row.name == name), None)
    if row is None:
        raise UserError(f"unknown format {name}", do=nearest(name, FORMAT_NAMES))
    return row
