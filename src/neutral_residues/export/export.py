"""From a live extended model to a folder in one of the formats, whole, checked, or not there at
all."""

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.errors import UserError, first_line, nearest
from neutral_residues.export.card import write_export_card
from neutral_residues.export.formats.table import FORMATS, Format, find_format
from neutral_residues.export.parts import Parts, take_apart
from neutral_residues.export.reference import Seen, look_at
from neutral_residues.export.verify import Difference, check, measure
from neutral_residues.files import whole_folder
from neutral_residues.results.run_folder import check_free

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Target:
    """Where an export goes and in which form; made before anything is loaded, so that what is wrong
    shows at once."""

    folder: Path
    row: Format
    dtype: torch.dtype

    @classmethod
    def of(cls, folder: Path, *, to: str, dtype: str = "float32") -> "Target":
        """Raises a UserError for an unknown format or type, or a folder that holds something."""
        if dtype not in DTYPES:
            raise UserError(
                "dtype", got=dtype, allowed=", ".join(DTYPES), do=nearest(dtype, DTYPES)
            )
        row = find_format(to)
        check_free(folder)
        return cls(folder, row, DTYPES[dtype])


def export_model(
    model: nn.Module,
    target: Target,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: str = "",
) -> Difference:
    """Write the active adapters of `model`, with its backbone where the format has one, and compare
    the result.

    `model` is moved to the CPU, rounded to the target's type and taken apart: it is not usable
    afterwards.

    Args:
        tokenizer: saved beside the model.
        text: some text on which the adapters speak, to compare on; random tokens are tried as well.

    Returns:
        The measured difference to the live model.

    Raises:
        UserError: if the format cannot hold the extension, or what was written is not the live
            model; no folder is left then.
    """
    if not isinstance(model, PeftModel):
        raise UserError(
            "this is a whole model, not an extension: it is already stock", do="use it as it is"
        )
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise UserError("the backbone is quantised", do="load it in float32, and export that")
    model = _rounded(model.to("cpu").eval(), target.dtype)
    if text and tokenizer is None:
        raise UserError("text has no effect without a tokenizer", do="give both")
    seen = look_at(model, tokenizer(text)["input_ids"] if tokenizer is not None and text else ())
    parts = take_apart(model)
    reason = _refusal(target.row, parts)
    if reason is not None:
        others = [row.name for row in FORMATS if _refusal(row, parts) is None]
        raise UserError(
            f"{target.row.name} cannot hold this extension: {reason}",
            do=f"formats that can: {', '.join(others)}",
        )
    seen.check_heard()
    try:
        with whole_folder(target.folder) as folder:
            return _fill(folder, target, parts, seen, tokenizer)
    except SafetensorError as error:  # its own type for a full disk
        raise UserError(f"cannot write {target.folder}", got=first_line(error)) from error


def _fill(
    folder: Path,
    target: Target,
    parts: Parts,
    seen: Seen,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Difference:
    row = target.row
    row.write(parts, folder, target.dtype)
    if tokenizer is not None and row.kind == "model":
        tokenizer.save_pretrained(folder)
    difference = measure(folder, seen, kind=row.kind, trust_remote_code=row.trust_remote_code)
    check(difference, rounded=target.dtype != torch.float32 and row.computes(parts))
    write_export_card(folder, row, parts, difference)
    return difference


def _refusal(row: Format, parts: Parts) -> str | None:
    if parts.merged and not row.merges:
        return (
            "its updates are added to the backbone's own matrices, so nothing stands beside a block"
        )
    return row.refusal(parts)


@torch.no_grad()
def _rounded(model: PeftModel, dtype: torch.dtype) -> PeftModel:
    """The weights that will be stored, to compute with in float32. Buffers, such as rotary
    frequencies, stay exact."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model
