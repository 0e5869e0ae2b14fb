"""The record of a run: one JSON file that says what was measured, in which unit, of which model,
from which code.

    write_record(path, Record(kind="evaluate", method="neutral", metrics=...,
    provenance=provenance(seed=0))) read_record(path)

Every number has a name, a unit and the direction in which it is good. A file is there in full or
not at all; NaN and infinity are never written; an unknown field, a foreign file or one from newer
code is refused in one line.

What a record holds is in `record.py`. Records of older versions are read, with what they lack left
empty. A run that failed inside a comparison leaves a `Failure` instead. No torch.
"""

import json
import platform as platform_module
import statistics
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from neutral_residues.errors import UserError, nearest
from neutral_residues.files import disk_errors, write_json
from neutral_residues.results.record import (
    FORMAT,
    VERSION,
    Failure,
    Metric,
    Of,
    Part,
    Provenance,
    Record,
)

PACKAGES = (
    "neutral-residues",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "lm-eval",
)

Schema = TypeVar("Schema", bound=Part)


def write_record(path: Path | str, record: Record) -> None:
    """Write `record` to `path` as JSON, whole or not at all.

    Raises:
        UserError: if it holds a NaN or an infinity, or something that JSON cannot hold; or the disk
            refuses.
    """
    try:
        write_json(Path(path), record.model_dump(mode="json"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(
            f"the record for {path} cannot be written", got=str(error), allowed="finite numbers"
        ) from error


def read_record(path: Path | str) -> Record:
    """The record in the file at `path`.

    Raises:
        UserError: if there is no such file, it is no JSON (or was cut short), not one of our
            records, from newer code than this, or its fields are wrong.
    """
    value = _read_json(path)
    _check_header(path, value)
    return _validated(Record, path, value)


def read_failure(path: Path | str) -> Failure:
    """The failure in the file at `path`.

    Raises:
        UserError: as `read_record`.
    """
    return _validated(Failure, path, _read_json(path))


def _read_json(path: Path | str) -> Any:
    with disk_errors(path):
        raw = Path(path).read_bytes()
    try:
        return json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        do = "if it was cut short while being copied, copy it again"
        raise UserError(f"record {path} is not whole JSON", got=str(error), do=do) from error


def _validated(schema: type[Schema], path: Path | str, value: Any) -> Schema:
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "record"
        raise UserError(
            f"record {path}: {where}: {first['msg']}", got=repr(first["input"])[:80]
        ) from error


def find(record: Record, name: str, *, set: str, of: Of, layer: int | None = None) -> Metric:
    """The one metric of that name, evaluation set, model and layer.

    Raises:
        UserError: if the record does not hold it; names what it does hold.
    """
    for metric in record.metrics:
        if (metric.name, metric.set, metric.of, metric.layer) == (name, set, of, layer):
            return metric
    wanted = _label(name, set, of, layer)
    held = [
        _label(m.name, m.set, m.of, m.layer)
        for m in record.metrics
        if m.layer is None or layer is not None
    ]
    raise UserError(
        "the record lacks a metric",
        got=wanted,
        do=nearest(wanted, held) if held else "it holds none",
    )


def validation_bits(record: Record) -> float | None:
    """Bits per byte at the end of training, mean over the target sets to validate on; None if none
    was measured.

    Learning rates are chosen by it, and the report shows what was chosen by it.
    """
    keys = [
        f"bits_per_byte/{s.name}" for s in record.sets if s.use == "validate" and s.role == "target"
    ]
    measured = [point for point in record.curve if keys and all(key in point for key in keys)]
    if not measured:
        return None
    last = max(measured, key=lambda point: point["step"])
    return statistics.fmean(last[key] for key in keys)


def provenance(
    *, seed: int | None = None, device: str = "cpu", tokenizer_key: str | None = None
) -> Provenance:
    """Where a record made now, by this process, comes from."""
    return Provenance(
        python=platform_module.python_version(),
        platform=(
            f"{platform_module.system()} {platform_module.release()} {platform_module.machine()}"
        ),
        device=device,
        packages={package: _version(package) for package in PACKAGES},
        git_commit=_git_commit(),
        seed=seed,
        tokenizer_key=tokenizer_key,
    )


def _check_header(path: Path | str, value: Any) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a record of neutral-residues",
            allowed=f'a JSON object with "format": "{FORMAT}"',
        )
    version = value.get("version")
    if isinstance(version, int) and version > VERSION:
        do = "update neutral-residues"
        raise UserError(
            f"record {path} is of a newer version", got=version, allowed=f"up to {VERSION}", do=do
        )


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _label(name: str, set: str, of: str, layer: int | None) -> str:
    return f"{name}/{set}/{of}" + ("" if layer is None else f"/layer {layer}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    # Only our own checkout counts: an installed copy may lie inside somebody else's repository.
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "src" / "neutral_residues").is_dir():
        return None
    command = [
        "git",
        "--no-optional-locks",
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
