"""The settings behind a record, and the check that two records were measured alike."""

import json
import re
from collections.abc import Mapping
from typing import Any

from neutral_residues.config.base import flat
from neutral_residues.config.run import RunConfig
from neutral_residues.errors import UserError
from neutral_residues.report.load import Found
from neutral_residues.results.record import Record

NOT_A_SETTING = re.compile(
    r"output|seed|evaluation\..*|data\.(cache|workers)|scaling\.trained"
    r"|training\.(log_every|save_every|keep_checkpoints|report_to)"
)
"""Settings that do not distinguish points: they change no weight, or all records of a section agree
in them."""
CALIBRATED = {"kind", "at_most", "confidence", "rise_percent", "form", "over", "dial"}
"""Fields of a promise that distinguish points."""


def shown_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings as "training.steps" -> 1000, without null and []; lists become JSON."""
    return {
        key: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
        for key, value in flat(config).items()
        if value is not None and value != [] and value != {}
    }


def point_settings(record: Record) -> dict[str, Any]:
    """The settings that distinguish points: the configuration without those in which seeds may
    differ, and how a calibrated extension was calibrated."""
    config = shown_settings(_with_defaults(record.config))
    settings = config | {"label": record.label, "method": record.method}
    if record.measured_promise:
        calibrated = record.measured_promise.model_dump(include=CALIBRATED)
        settings |= shown_settings({"promise": calibrated})
    return {key: settings[key] for key in settings if not NOT_A_SETTING.fullmatch(key)}


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a run with the defaults of settings that are newer than its record, so
    that it differs from a newer record's only in what was chosen. Unchanged if it is not that of a
    run, or cannot be read by this version."""
    try:
        return RunConfig.model_validate(config).model_dump(mode="json")
    except (ValueError, UserError):  # pydantic's is a ValueError
        return config


def check_alike(one: Found, other: Found) -> None:
    """Raise a UserError, with the first difference, unless both agree in all of
    `_measured_with`."""
    theirs = _measured_with(other.record)
    for what, mine in _measured_with(one.record).items():
        if mine != theirs.get(what):
            raise UserError(
                f"{one.origin} and {other.origin} do not compare: they differ in {what}",
                got=f"{mine} and {theirs.get(what)}",
                do="report them apart, or evaluate one of them again",
            )


def _measured_with(record: Record) -> dict[str, object]:
    parts = (record.config.get("model"), record.config.get("revision"))
    return {
        "backbone": "@".join(str(part) for part in parts if part),
        "tokenizer": record.provenance.tokenizer_key,
        "windows (context, stride in tokens)": _windows(record),
        "evaluation sets": ", ".join(sorted(record.sets)),
        **{f"the text of {name} (key)": record.sets[name].key for name in sorted(record.sets)},
    }


def _windows(record: Record) -> tuple[int | None, int | None]:
    settings = shown_settings(record.config)
    context = settings.get("evaluation.context_tokens", settings.get("data.block_tokens"))
    half = max(1, context // 2) if context else None
    return context, settings.get("evaluation.stride_tokens", half)
