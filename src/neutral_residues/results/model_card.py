"""The README (model card) of a saved extension: how to load it, and what it learnt and forgot.

Its metadata has the form of the Hub, which therefore lists bits per byte of backbone and extended
model as evaluation results. No torch, no network.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from neutral_residues.files import write_text
from neutral_residues.results.composition import FILE as COMPOSITION
from neutral_residues.results.promise import Promise
from neutral_residues.results.record import Record

_LOAD_ADAPTER = """import neutral_residues  # registers the method with PEFT; must come first
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")
with model.disable_adapter():
    ...  # the backbone, exactly as it was"""

_LOAD_COMPOSITION = """from pathlib import Path

from neutral_residues.evaluation.saved import load_saved

model = load_saved(Path("path/to/this/folder")).model
model.set_adapter("NAME")  # one of them by itself"""

_PROMISE = "## Calibrated"

_LOAD_PEFT = _LOAD_ADAPTER.split("\n", 1)[1]
_OURS = ("NEUTRAL_RESIDUES", "DISEL")
"""PEFT types that are registered by importing this package."""

_LOAD_WHOLE = """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")"""


def write_card(folder: Path, record: Record) -> None:
    """Write `README.md` into the folder of an extension, which is an adapter or a whole model."""
    file = folder / "adapter_config.json"
    adapter = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    loading = _LOAD_COMPOSITION if (folder / COMPOSITION).is_file() else _loading(adapter)
    text = model_card(record, loading, head_rank=(adapter or {}).get("head_rank") or 0)
    write_text(folder / "README.md", text)


def _loading(adapter: dict[str, Any] | None) -> str:
    """Lines of Python that load an adapter with this configuration, or a whole model (None)."""
    if adapter is None:
        return _LOAD_WHOLE
    return _LOAD_ADAPTER if adapter["peft_type"] in _OURS else _LOAD_PEFT


def model_card(record: Record, loading: str, *, head_rank: int = 0) -> str:
    """The text of the card.

    Args:
        loading: lines of Python that load the extension.
        head_rank: rank of its residue on the output head, 0 for none.
    """
    model = str(record.config["model"])
    title = f"{Path(model).name}, extended ({record.label})"
    metadata = ModelCardData(
        # The Hub accepts only names of models here, not local folders.
        base_model=None if Path(model).is_dir() else model,
        library_name="transformers" if loading == _LOAD_WHOLE else "peft",
        pipeline_tag="text-generation",
        tags=["neutral-residues"],
        model_name=title,
        eval_results=_eval_results(record) or None,
    )
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {title}",
        f"```python\n{loading}\n```",
        _table(record),
        "Bits per byte on held-out text, lower is better.",
    ]
    cost = record.cost
    if cost.new_share is not None and cost.tokens is not None:
        parts.append(
            f"{cost.new_weights:,} new weights, {100 * cost.new_share:.2f} % of the backbone's"
            f" {cost.backbone_weights:,}; trained on {cost.tokens:,} tokens."
        )
    if size := (record.config.get("vocabulary") or {}).get("size"):
        parts.append(_vocabulary(record, size))
    if record.self_text:
        parts.append(f"Its source text was not given but generated: {record.self_text.sentence}.")
    if head_rank:
        parts.append(f"A residue of rank {head_rank} on the output head is part of it.")
    return with_promise("\n\n".join(parts) + "\n", record.promise)


def with_promise(card: str, promise: Promise | None) -> str:
    """`card` with `promise` as its last section, which replaces an earlier one; None removes it."""
    card = card.split(f"\n{_PROMISE}\n")[0]
    if promise is None:
        return card
    facts = [
        f"Tokens of {text.name} on which all gates are exactly 0, so that the extension is skipped:"
        f" {100 * text.exact_share:.1f} % ({100 * text.trained_exact_share:.1f} % as trained)."
        for text in promise.sets
    ]
    facts += [
        f"{cost.points:.1f} % of what was learnt on {cost.name} is lost: {cost.trained:.4f} bits"
        f" per byte as trained, {cost.calibrated:.4f} now."
        for cost in promise.costs
        if cost.points is not None
    ]
    return f"{card}\n{_PROMISE}\n\n{promise.sentence}\n\n{' '.join(facts)}\n"


def composition_card(names: Sequence[str], backbone: str, over: int | None) -> str:
    """The card of several extensions in one folder; `over` is that of `Composition`."""
    how = "All are active, each as far as its gate is open; their outputs are summed."
    if over is not None:
        where = "at this token" if over == 1 else f"over the last {over} tokens"
        how = f"Of several open gates only the extension with the largest {where} is active."
    return _short_card(names, backbone, how, _LOAD_COMPOSITION)


def average_card(names: Sequence[str], backbone: str) -> str:
    """The card of an extension whose weights are the average of several extensions."""
    return _short_card(names, backbone, "Its weights are the mean of theirs.", _LOAD_ADAPTER)


def _short_card(names: Sequence[str], backbone: str, how: str, loading: str) -> str:
    metadata = ModelCardData(
        base_model=None if Path(backbone).is_dir() else backbone,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["neutral-residues"],
    )
    title = f"{Path(backbone).name}, extended with {', '.join(names)}"
    parts = [f"---\n{metadata.to_yaml()}\n---", f"# {title}", how, f"```python\n{loading}\n```"]
    return "\n\n".join(parts) + "\n"


def _vocabulary(record: Record, size: int) -> str:
    """Sentences about the new tokens: how many, what they save, and which tokenizer to use."""
    sets = record.sets.items()
    saved = [
        f"{name} has {found.num_tokens / found.backbone_tokens:.2f} times the backbone's tokens"
        for name, found in sets
        if found.backbone_tokens
    ]
    facts = f": {'; '.join(saved)}" if saved else ""
    return (
        f"It has {size:,} tokens of its own{facts}. The tokenizer in this folder has them behind"
        " the backbone's, which keep their ids; with the extension switched off, use the"
        " backbone's tokenizer."
    )


def _eval_results(record: Record) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation",
            dataset_name=f"{name} ({found.role})",
            dataset_type=name,
            metric_type="bits_per_byte",
            metric_name=f"bits per byte, {model}",
            metric_value=round(bits, 4),
        )
        for name, found in record.sets.items()
        for model, bits in (
            ("backbone", found.backbone_bits_per_byte),
            ("extended model", found.extended_bits_per_byte),
        )
    ]


def _table(record: Record) -> str:
    rows = ["| held-out text | role | backbone | extended | change |", "|---|---|---|---|---|"]
    for name, found in record.sets.items():
        rows.append(
            f"| {name} | {found.role} | {found.backbone_bits_per_byte:.4f} |"
            f" {found.extended_bits_per_byte:.4f} | {found.rise_percent:+.2f} % |"
        )
    return "\n".join(rows)
