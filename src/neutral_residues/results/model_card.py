"""The README of a saved extension: how to load it, and what it cost on both sides."""

import json
from pathlib import Path

from neutral_residues.files import write_text
from neutral_residues.results.record import Record

_LOAD_ADAPTER = """import neutral_residues  # registers the method with PEFT; must come first
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
with model.disable_adapter():
    ...  # the backbone, exactly as it was"""

_LOAD_PEFT = _LOAD_ADAPTER.split("\n", 1)[1]

_LOAD_WHOLE = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")"""


def write_card(folder: Path, record: Record) -> None:
    """Write `README.md` into the folder of an extension, which holds an adapter or a whole
    model."""
    write_text(folder / "README.md", card(record, _loading(folder)))


def _loading(folder: Path) -> str:
    """The lines that load what lies in `folder`."""
    adapter = folder / "adapter_config.json"
    if not adapter.is_file():
        return _LOAD_WHOLE
    is_ours = json.loads(adapter.read_text(encoding="utf-8"))["peft_type"] == "NEUTRAL_RESIDUES"
    return _LOAD_ADAPTER if is_ours else _LOAD_PEFT


def card(record: Record, loading: str) -> str:
    """The card's text."""
    model = str(record.config["model"])
    library = "transformers" if loading == _LOAD_WHOLE else "peft"
    lines = [
        "---",
        f"base_model: {model}",
        f"library_name: {library}",
        "tags: [neutral-residues]",
        "---",
        "",
    ]
    lines += [f"# {Path(model).name}, extended ({record.label})", ""]
    lines += ["```python", loading, "```", ""]
    lines += [*_table(record), ""]
    cost = record.cost
    if cost.new_weights is not None and cost.backbone_weights and cost.tokens is not None:
        lines.append(
            f"{cost.new_weights:,} new weights beside {cost.backbone_weights:,} of the backbone"
            f" ({100 * cost.new_weights / cost.backbone_weights:.2f} %); trained on {cost.tokens:,}"
            " tokens."
        )
    return "\n".join(lines) + "\n"


def _table(record: Record) -> list[str]:
    rows = ["| held-out text | role | backbone | extended | change |", "|---|---|---|---|---|"]
    for name, found in record.sets.items():
        rows.append(
            f"| {name} | {found.role} | {found.backbone_bits_per_byte:.4f} |"
            f" {found.extended_bits_per_byte:.4f} | {found.rise_percent:+.2f} % |"
        )
    rows += ["", "Bits per byte on held-out text, lower is better."]
    return rows
