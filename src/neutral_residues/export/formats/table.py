"""The table of formats: why each refuses what it does not hold exactly, and how it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from neutral_residues.errors import UserError, nearest
from neutral_residues.export.formats.dense import dense_refusal, write_dense
from neutral_residues.export.formats.moe import QWEN2_MOE, QWEN3_NEXT, moe_refusal, write_moe
from neutral_residues.export.formats.remote_code import remote_code_refusal, write_remote_code
from neutral_residues.export.formats.tensors import tensors_refusal, write_tensors
from neutral_residues.export.parts import Parts
from neutral_residues.export.verify import Kind


@dataclass(frozen=True)
class Format:
    """One row.

    Attributes:
        name: as in `--to`.
        title: what it is.
        cannot_hold: why it cannot hold adapters parallel to blocks, or None.
        write: writes parts into a folder, in a type.
        computes: whether it writes weights that are not merely copied; they are rounded once more
            when stored in 16 bits.
        kind: what is compared with the live model: logits of a whole model, or residues of the
            adapter alone.
        trust_remote_code: whether loading it runs code from the folder.
        merges: whether low-rank updates can be merged into it.
    """

    name: str
    title: str
    cannot_hold: Callable[[Parts], str | None]
    write: Callable[[Parts, Path, torch.dtype], None]
    computes: Callable[[Parts], bool] = lambda parts: False
    kind: Kind = "logits"
    trust_remote_code: bool = False
    merges: bool = False

    def refusal(self, parts: Parts) -> str | None:
        """Why it cannot hold these parts, or None."""
        if parts.merged and not self.merges:
            return "its updates are added to the backbone's own matrices, so there is no adapter"
        return self.cannot_hold(parts)


FORMATS: tuple[Format, ...] = (
    Format(
        name="transformers",
        title="a model folder with its own modelling code (trust_remote_code)",
        cannot_hold=remote_code_refusal,
        write=write_remote_code,
        trust_remote_code=True,
    ),
    Format(
        name="qwen2_moe",
        title=(
            "a stock Qwen2-MoE model: the old FFN as its one expert, the adapter as gated shared"
            " expert"
        ),
        cannot_hold=partial(moe_refusal, QWEN2_MOE),
        write=partial(write_moe, QWEN2_MOE),
        computes=lambda parts: parts.model_type == "gemma",
    ),
    Format(
        name="qwen3_next",
        title="the same as a stock Qwen3-Next model with full attention in every layer",
        cannot_hold=partial(moe_refusal, QWEN3_NEXT),
        write=partial(write_moe, QWEN3_NEXT),
        computes=lambda parts: True,
    ),
    Format(
        name="dense",
        title="the backbone's own stock architecture",
        cannot_hold=dense_refusal,
        write=write_dense,
        computes=lambda parts: parts.merged,
        merges=True,
    ),
    Format(
        name="safetensors",
        title="the adapter alone: tensors, formula and a reference in PyTorch, for any runtime",
        cannot_hold=tensors_refusal,
        write=write_tensors,
        kind="residues",
    ),
)

FORMAT_NAMES = tuple(row.name for row in FORMATS)


def find_format(name: str) -> Format:
    """The row of that name.

    Raises:
        UserError: naming the nearest.
    """
    for row in FORMATS:
        if row.name == name:
            return row
    raise UserError(f"unknown format {name}", do=nearest(name, FORMAT_NAMES))
