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
from neutral_residues.export.formats.tensors import plain_refusal, write_plain
from neutral_residues.export.parts import Parts
from neutral_residues.export.verify import Kind


@dataclass(frozen=True)
class Format:
    """One row.

    Attributes:
        name: as in `--to`.
        title: what it is.
        refusal: why it cannot hold these parts, or None.
        write: writes parts into a folder, in a type.
        computes: whether it writes weights that are not merely copied; they round once more when
            stored in 16 bits.
        kind: what can be compared with the live model.
        trust_remote_code: whether loading it runs code that lies in the folder.
        merges: whether low-rank updates can be merged into it.
    """

    name: str
    title: str
    refusal: Callable[[Parts], str | None]
    write: Callable[[Parts, Path, torch.dtype], None]
    computes: Callable[[Parts], bool] = lambda parts: False
    kind: Kind = "model"
    trust_remote_code: bool = False
    merges: bool = False


FORMATS: tuple[Format, ...] = (
    Format(
        name="transformers",
        title="a model folder with its own modelling code (trust_remote_code)",
        refusal=remote_code_refusal,
        write=write_remote_code,
        trust_remote_code=True,
    ),
    Format(
        name="qwen2_moe",
        title=(
            "a stock Qwen2-MoE model: the old FFN as its one expert, the adapter as gated shared"
            " expert"
        ),
        refusal=partial(moe_refusal, QWEN2_MOE),
        write=partial(write_moe, QWEN2_MOE),
        computes=lambda parts: parts.model_type == "gemma",
    ),
    Format(
        name="qwen3_next",
        title="the same as a stock Qwen3-Next model with full attention in every layer",
        refusal=partial(moe_refusal, QWEN3_NEXT),
        write=partial(write_moe, QWEN3_NEXT),
        computes=lambda parts: True,
    ),
    Format(
        name="dense",
        title="the backbone's own stock architecture",
        refusal=dense_refusal,
        write=write_dense,
        computes=lambda parts: parts.merged,
        merges=True,
    ),
    Format(
        name="safetensors",
        title=(
            "the adapter alone: tensors, formula and a reference in PyTorch, for a runtime of"
            " your own"
        ),
        refusal=plain_refusal,
        write=write_plain,
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
