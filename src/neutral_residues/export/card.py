"""The README of an exported folder."""

from pathlib import Path

from neutral_residues.export.formats.table import Format
from neutral_residues.export.parts import Parts
from neutral_residues.export.verify import Difference
from neutral_residues.files import write_text

_LOAD_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{option})
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder"{option})"""

_LOAD_PLAIN = """from reference import residue  # in this folder

residue(x, layer=3)  # what is added to the output of that layer's block, which reads x"""

_LICENCE = (
    "The weights of the backbone are in this folder. Its licence holds for them: check what it says"
    " before you pass the folder on."
)


def write_export_card(folder: Path, row: Format, parts: Parts, difference: Difference) -> None:
    """Write `README.md`: what lies in the folder, from which backbone, how to load it, and how
    exact it is."""
    backbone = parts.backbone.name_or_path
    if row.kind == "model":
        loading = _LOAD_MODEL.format(
            option=", trust_remote_code=True" if row.trust_remote_code else ""
        )
    else:
        loading = _LOAD_PLAIN
    library = ["library_name: transformers"] if row.kind == "model" else []
    lines = ["---", f"base_model: {backbone}", *library, "tags: [neutral-residues]", "---", ""]
    lines += [f"# {Path(backbone).name}, extended", ""]
    lines += [
        f"An extension of {backbone} as {row.title}. Written by neutral-residues, which is not"
        " needed to use it."
    ]
    lines += ["", "```python", loading, "```", ""]
    lines += [
        (
            "Loaded in a fresh process it was compared with the live model in float32:"
            f" {describe(difference, row)}."
        ),
        "",
    ]
    holds_backbone = row.kind == "model"
    lines += [_LICENCE if holds_backbone else "No weight of the backbone is in this folder."]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def describe(difference: Difference, row: Format) -> str:
    """The measured difference in words."""
    what = "logits" if row.kind == "model" else "residues"
    parts = [f"{what} are equal, bit for bit"]
    if difference.logits:
        parts = [f"{what} up to {difference.largest:.3g} differ by at most {difference.logits:.1e}"]
    if row.kind == "model":
        cache = f"differs by at most {difference.cache:.1e}" if difference.cache else "is equal too"
        parts += [f"generation with a cache {cache}"]
    if difference.num_silent:
        parts += [
            f"in {difference.num_silent} layers every gate stayed shut, so these are not compared"
        ]
    return "; ".join(parts)
