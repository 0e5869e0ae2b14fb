"""What was found about the texts of a run, made up: French to learn, English to keep."""

from typing import Any

from neutral_residues.advice.rules import TextFacts
from neutral_residues.config.run import make_run


def config(**changes: Any) -> Any:
    corpora = [
        {"name": name, "role": role, "path": f"{name}.txt"}
        for name, role in (("fr", "target"), ("en", "source"))
    ]
    values = {"model": "x", "output": "y", "data": {"train": corpora}, "training": {"steps": 100}}
    return make_run(values | changes)


def text(name: str, role: str, use: str = "train", **changes: Any) -> TextFacts:
    values: dict[str, Any] = {
        "name": name,
        "role": role,
        "use": use,
        "num_documents": 10,
        "num_tokens": 1_000_000 if use == "train" else 10_000,
        "num_bytes": 4_000_000,
        "tokens_per_char": 0.25,
        "tokens_per_word": 1.5,
        "bytes_per_char": 1.0,
        "backbone_bits": 1.0,
    }
    return TextFacts(**values | changes)


def both(
    target: dict[str, Any] | None = None, source: dict[str, Any] | None = None
) -> list[TextFacts]:
    target = {"backbone_bits": 3.0} | (target or {})
    sides = (("fr", "target", target), ("en", "source", source or {}))
    return [
        text(name, role, use, **changes)
        for use in ("train", "evaluate")
        for name, role, changes in sides
    ]
