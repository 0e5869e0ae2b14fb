"""The settings behind a record: flat, comparable, and the check that two records were measured
alike."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.report.load import Found
from neutral_residues.results.record import Record

NOT_A_SETTING = re.compile(
    r"output|seed|evaluation\..*|data\.(cache|workers)|averaging\.finetuned"
    r"|training\.(log_every|save_every|keep_checkpoints|report_to)"
)
"""Configuration that makes no other point: it changes no weight, or all records of a section must
agree in it."""
CONTEXT_KEYS = ("evaluation.context_tokens", "context_tokens", "data.block_tokens")
STRIDE_KEYS = ("evaluation.stride_tokens", "stride_tokens")
"""Where windows are set: by a run, by `neutral evaluate`, by default."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as "training.steps" -> 1000; what is null or empty is left out, lists are
    JSON."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif value is not None and value != []:
            is_list = isinstance(value, list)
            found[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False) if is_list else value
    return found


def point_settings(record: Record) -> dict[str, Any]:
    """Everything that makes a point: the configuration without what seeds may differ in; see
    `flat`."""
    settings = flat(record.config)
    kept = {key: settings[key] for key in settings if not NOT_A_SETTING.fullmatch(key)}
    return kept | {"label": record.label, "method": record.method}


def check_alike(one: Found, other: Found) -> None:
    """Raise unless two records of a section were measured alike: same backbone, tokenizer, windows
    and text.

    Raises:
        UserError: names both records, the first difference and what to do.
    """
    for what, mine, theirs in _measured_with(one.record, other.record):
        if mine != theirs:
            raise UserError(
                f"{one.origin} and {other.origin} do not compare: they differ in {what}",
                got=f"{mine} and {theirs}",
                do="report them apart, or evaluate one of them again",
            )


def _measured_with(one: Record, other: Record) -> Iterable[tuple[str, object, object]]:
    yield "backbone", _backbone(one), _backbone(other)
    yield "tokenizer", one.provenance.tokenizer_key, other.provenance.tokenizer_key
    yield "windows (context, stride in tokens)", _windows(one), _windows(other)
    yield "evaluation sets", ", ".join(sorted(one.sets)), ", ".join(sorted(other.sets))
    for name in sorted(one.sets):
        yield f"the text of {name} (key)", one.sets[name].key, other.sets[name].key


def _backbone(record: Record) -> str:
    parts = (record.config.get("model"), record.config.get("revision"))
    return "@".join(str(part) for part in parts if part)


def _windows(record: Record) -> tuple[int | None, int | None]:
    settings = flat(record.config)
    context, stride = (
        next((settings[key] for key in keys if key in settings), None)
        for keys in (CONTEXT_KEYS, STRIDE_KEYS)
    )
    return context, stride or (max(1, context // 2) if context else None)
