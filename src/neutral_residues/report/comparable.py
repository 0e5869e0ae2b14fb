"""The settings behind a record: flat, comparable, and the check that two records were measured
alike."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.report.load import Found
from neutral_residues.results.record import Record

NO_SETTING = frozenset(
    {
        *(
            "output",
            "seed",
            "data.cache",
            "data.workers",
            "averaging.finetuned",
            "training.log_every",
        ),
        *(
            "training.save_every",
            "training.keep_checkpoints",
            "training.report_to",
            "evaluation.batch_rows",
        ),
        *(
            "evaluation.context_tokens",
            "evaluation.stride_tokens",
            "evaluation.kl",
            "evaluation.prompts",
            "evaluation.temperature",
        ),
        *("evaluation.tasks", "evaluation.task_limit", "evaluation.task_data"),
    }
)
"""Configuration that makes no other point: it changes no weight, or all records of a section must
agree in it."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as "training.steps" -> 1000; what is null or empty is left out, lists are
    JSON."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            found |= {f"{prefix}{key}": json.dumps(value, ensure_ascii=False)} if value else {}
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found


def point_settings(record: Record) -> dict[str, Any]:
    """Everything that makes a point: the configuration without what seeds may differ in; see
    `flat`."""
    kept = {key: value for key, value in flat(record.config).items() if key not in NO_SETTING}
    return kept | {"label": record.label, "method": record.method}


def check_alike(one: Found, other: Found) -> None:
    """Raise unless two records of a section were measured alike: same backbone, tokenizer, windows
    and text.

    Raises:
        UserError: names both records, the first difference and what to do.
    """
    for what, mine, theirs in _measured_by(one.record, other.record):
        if mine != theirs:
            raise UserError(
                f"{one.origin} and {other.origin} do not compare: they differ in {what}",
                got=f"{mine} and {theirs}",
                do="report them apart, or evaluate one of them again",
            )


def _measured_by(one: Record, other: Record) -> Iterable[tuple[str, object, object]]:
    yield "backbone", _backbone(one), _backbone(other)
    yield "tokenizer", one.provenance.tokenizer_key, other.provenance.tokenizer_key
    yield "windows (context, stride in tokens)", _windows(one), _windows(other)
    mine, theirs = _texts(one), _texts(other)
    yield "evaluation sets", ", ".join(sorted(mine)), ", ".join(sorted(theirs))
    for name in sorted(mine):
        yield f"the text of {name} (bytes, tokens)", mine[name][:2], theirs[name][:2]
        yield f"the text of {name} (key)", mine[name][2], theirs[name][2]


def _backbone(record: Record) -> str:
    return "@".join(
        str(part) for part in (record.config.get("model"), record.config.get("revision")) if part
    )


def _windows(record: Record) -> tuple[Any, Any]:
    settings = flat(record.config)
    keys = (
        "evaluation.context_tokens",
        "context_tokens",
        "data.block_tokens",
    )  # the second: of evaluation alone
    context = next((settings[key] for key in keys if key in settings), None)
    stride = settings.get("evaluation.stride_tokens") or settings.get("stride_tokens")
    stride = stride or (max(1, context // 2) if context else None)
    return context, stride


def _texts(record: Record) -> dict[str, tuple[int, int, str]]:
    """Evaluation set -> bytes, tokens and key."""
    return {name: (s.num_bytes, s.num_tokens, s.key) for name, s in record.sets.items()}
