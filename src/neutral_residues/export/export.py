"""Exports an extended model in memory to a folder for other programs. The folder is complete and
verified, or not written at all."""

import copy as copying
from pathlib import Path
from typing import Any

import jinja2
import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.digest import write_digests
from neutral_residues.errors import UserError, first_line, nearest
from neutral_residues.evaluation.generate import end_tokens
from neutral_residues.export.formats.table import Format, find_format
from neutral_residues.export.parts import Parts, extract_parts
from neutral_residues.export.reference import record_reference
from neutral_residues.export.verify import Difference, compare
from neutral_residues.files import whole_folder, write_text
from neutral_residues.results.run_folder import check_free

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_target(folder: Path, *, dtype: str) -> torch.dtype:
    """The torch type called `dtype`; a UserError if there is none, or `folder` is not empty."""
    if dtype not in DTYPES:
        raise UserError("dtype", got=dtype, allowed=", ".join(DTYPES), do=nearest(dtype, DTYPES))
    check_free(folder)
    return DTYPES[dtype]


def export_model(
    model: nn.Module,
    folder: Path | str,
    *,
    to: str,
    dtype: str = "float32",
    tokenizer: PreTrainedTokenizerBase | None = None,
    text: str = "",
    end_of_text: int | None = None,
    copy: bool = True,
) -> Difference:
    """Export the active adapters of `model` in a format for other programs, and compare the result
    with `model`.

    Args:
        model: a PEFT model with neutral residues, or with another method that can be merged.
        folder: folder to write; must be empty or absent.
        to: name of the format, see `FORMATS`; all but "safetensors" include the backbone.
        dtype: type of the stored weights: float32, bfloat16 or float16.
        tokenizer: saved with the model; for an extension with new tokens, the extended tokenizer.
        text: a text on which gates are open, for the comparison; random tokens are tried as well.
        end_of_text: id of the token that ends a document, which also ends generation; default: see
            `end_of_text_id`.
        copy: False saves the memory of a second model, but leaves `model` unusable.

    Returns:
        The measured difference between the export, loaded in a new process, and `model`.

    Raises:
        UserError: if the format cannot hold the extension, or the difference is above the
            tolerance; no folder is left then.
    """
    folder, row = Path(folder), find_format(to)
    stored_type = check_target(folder, dtype=dtype)
    if tokenizer is None and (text or end_of_text is not None):
        what = f"{'text' if text else 'end_of_text'} has no effect without a tokenizer"
        raise UserError(what, do="give both")
    text_ids = list(tokenizer(text)["input_ids"]) if tokenizer and text else []
    model = _with_stored_weights(_checked(model), stored_type, copy=copy)
    reference, parts = record_reference(model, text_ids), extract_parts(model)
    if tokenizer is not None:
        ends = end_tokens(parts.backbone, tokenizer, end_of_text)
        parts.backbone.generation_config.eos_token_id = ends or None
    row.check(parts)
    reference.check_any_active()
    try:
        with whole_folder(folder) as written:
            row.write(parts, written, stored_type)
            if tokenizer is not None and (row.kind == "logits" or parts.new_ids):
                tokenizer.save_pretrained(written)
            difference = compare(
                written, reference, kind=row.kind, trust_remote_code=row.trust_remote_code
            )
            difference.check(rounded=dtype != "float32" and row.computes(parts))
            write_text(written / "README.md", _card(row, parts, difference))
            write_digests(written)
    except SafetensorError as error:  # also raised for a full disk
        raise UserError(f"cannot write {folder}", got=first_line(error)) from error
    return difference


def _checked(model: nn.Module) -> PeftModel:
    if not isinstance(model, PeftModel):
        raise UserError("this is a whole model, not an extension", do="use it as it is")
    if not all(parameter.is_floating_point() for parameter in model.parameters()):
        raise UserError("the backbone is quantised", do="load it in float32, and export that")
    return model


@torch.no_grad()
def _with_stored_weights(model: PeftModel, dtype: torch.dtype, *, copy: bool) -> PeftModel:
    """The model on the CPU in float32, with weights rounded to the stored type. Buffers, such as
    rotary frequencies, are not rounded."""

    def stored(parameter: nn.Parameter) -> Tensor:
        return parameter.detach().to("cpu", dtype).float()

    if copy:
        # Parameters go to the CPU one by one, so that the accelerator never holds a second model.
        memo = {id(p): nn.Parameter(stored(p).clone(), False) for p in model.parameters()}
        model = copying.deepcopy(model, memo)
    else:
        for parameter in model.parameters():
            parameter.data = stored(parameter)
    return model.to("cpu").eval()


def _card(row: Format, parts: Parts, difference: Difference) -> str:
    """Text of the README: contents of the folder, backbone, how to load it, measured difference."""
    template = Path(__file__).with_name("README.md.jinja").read_text(encoding="utf-8")
    card = jinja2.Template(template, trim_blocks=True, keep_trailing_newline=True)
    backbone = parts.backbone.name_or_path
    facts: dict[str, Any] = {
        "has_head": parts.has_head,
        "has_reader": parts.has_reader,
        "new_ids": parts.new_ids,
    }
    facts["promises"] = parts.promises
    name = Path(backbone).name
    return card.render(row=row, backbone=backbone, name=name, difference=difference, **facts)
