"""The record of a run: one JSON file that says what was measured, in which unit, of which model, from which code.

    write_record(path, Record(kind="evaluate", method="neutral", metrics=..., provenance=provenance(seed=0)))
    read_record(path)

Every number has a name, a unit and the direction in which it is good. A file is there in full or not at all; NaN and
infinity are never written; an unknown field, a foreign file or one from newer code is refused in one line.

The schema is the classes below, each field documented by the line under it. A change raises `VERSION`; older versions
are read, with what they lack left empty. A run that failed inside a comparison leaves a `Failure` instead. No torch.
"""

import json
import platform as platform_module
import statistics
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from neutral_residues.errors import UserError, nearest
from neutral_residues.files import disk_errors, write_json

FORMAT: Literal["neutral-residues/record"] = "neutral-residues/record"
VERSION: Literal[2] = 2
FAILURE_FORMAT: Literal["neutral-residues/failure"] = "neutral-residues/failure"
PACKAGES = ("neutral-residues", "torch", "transformers", "peft", "datasets", "tokenizers")

Of = Literal["backbone", "extended", "difference"]
Direction = Literal["lower", "higher", "none"]


class _Schema(BaseModel):
    """Base of all parts: unknown keys are errors, values never change, numbers are finite."""

    # "constants" keeps a NaN hidden in a free-form dict visible, so that writing refuses it instead of storing null.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )


Schema = TypeVar("Schema", bound=_Schema)


class Metric(_Schema):
    """One measured number."""

    name: str = Field(min_length=1)
    """What was measured, for example "bits_per_byte", "forgetting", "neutral_tokens"."""
    of: Of
    """Which model: the backbone, the extended model, or the difference between the two."""
    set: str = Field(min_length=1)
    """Name of the evaluation set."""
    role: Literal["source", "target"]
    """source: what the backbone knows. target: what it was to learn."""
    layer: int | None = None
    """Number of the transformer layer; null for the whole model."""
    value: float
    """The number, in `unit`."""
    unit: str = Field(min_length=1)
    """For example "bits/byte", "nats/token", "percent", "share" (0 to 1)."""
    direction: Direction
    """Whether lower or higher is better; "none" where neither is."""
    num_bytes: int = Field(ge=0)
    """UTF-8 bytes of text that the number was measured on."""
    num_tokens: int = Field(ge=0)
    """Tokens that the number was measured on."""


class Sample(_Schema):
    """How both models continue one prompt, with the same seed."""

    prompt: str
    """The text that was given."""
    backbone: str
    """What the backbone adds to it, without the prompt."""
    extended: str
    """What the extended model adds to it, without the prompt."""


class EvaluationSet(_Schema):
    """A text that was measured: two records compare only where these agree."""

    name: str = Field(min_length=1)
    """As in the metrics, or in the curve."""
    role: Literal["source", "target"]
    """source: what the backbone knows. target: what it was to learn."""
    use: Literal["evaluate", "validate"]
    """evaluate: measured at the end. validate: measured while training, to choose settings by."""
    key: str
    """Hash of its tokens: the same text under the same tokenizer."""
    num_bytes: int = Field(ge=0)
    """UTF-8 bytes of text."""
    num_tokens: int = Field(ge=0)
    """Tokens, end-of-text included."""
    num_documents: int = Field(ge=0)
    """Documents."""


class GateText(_Schema):
    """How open each block gate is on each token of one short text."""

    name: str = Field(min_length=1)
    """Where the text comes from: an evaluation set, "code-switched", or "prompt 1"."""
    kind: Literal["source", "target", "code-switched", "own"]
    """What kind of text it is."""
    tokens: list[str]
    """(T) the tokens as pieces of the text: joined, they are the text."""
    layers: list[int]
    """(L) number of each extended layer."""
    gates: list[list[float]]
    """(L, T) g at each layer and token; exactly 0 means that the layer is the backbone's."""

    @model_validator(mode="after")
    def _one_gate_for_each_layer_and_token(self) -> Self:
        shape = (len(self.layers), {len(self.tokens)})
        if (len(self.gates), {len(row) for row in self.gates} or {len(self.tokens)}) != shape:
            raise ValueError(f"gates must be {len(self.layers)} rows of {len(self.tokens)} numbers")
        return self


class Cost(_Schema):
    """What the run took; null where it was not measured."""

    tokens: int | None = Field(default=None, ge=0)
    """Tokens trained on, padding not counted."""
    seconds: float | None = Field(default=None, ge=0)
    """Wall time of the training steps, evaluation not counted."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """Training throughput over that time."""
    step_seconds: float | None = Field(default=None, ge=0)
    """Median time of an optimiser step, the first ones left out."""
    wall_seconds: float | None = Field(default=None, ge=0)
    """Wall time of the whole process that finished the run: loading, training, measuring, saving."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that it was given; times compare only at equal numbers and equal load."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    """The most memory held at once until training ended: of the accelerator, or of the process where there is none."""
    trainable_weights: int | None = Field(default=None, ge=0)
    """Weights that received gradients."""
    new_weights: int | None = Field(default=None, ge=0)
    """Weights that were added to the backbone."""
    stored_weights: int | None = Field(default=None, ge=0)
    """Weights in the folder that is saved: the extension's alone, or the whole model's."""
    backbone_weights: int | None = Field(default=None, ge=0)
    """Weights of the backbone, embeddings counted."""


class Provenance(_Schema):
    """Where a record comes from: enough to run it again."""

    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor; no host name."""
    device: str
    """What it ran on, for example "cpu" or the name of the accelerator."""
    packages: dict[str, str | None]
    """Installed version of each package that can change a number; null where it is not installed."""
    git_commit: str | None
    """Commit of this package's own checkout, with "-dirty" if files had changed; null for an installed package."""
    seed: int | None
    """Seed of the run; null where nothing was random."""
    tokenizer_key: str | None
    """Key of the tokenizer, as in the token files; null where not known."""


class Record(_Schema):
    """One run, whole."""

    format: Literal["neutral-residues/record"] = FORMAT
    """Says that the file is ours."""
    version: Literal[1, 2] = VERSION
    """Version of this schema."""
    kind: Literal["extend", "evaluate"]
    """extend: training and then evaluation. evaluate: evaluation only."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    """When the record was made, UTC, ISO 8601."""
    method: str = Field(min_length=1)
    """Name in the table of methods, for example "neutral" or "lora"."""
    metrics: list[Metric] = []
    """All final measurements; no two alike in name, of, set and layer."""
    sets: list[EvaluationSet] = []
    """The texts behind metrics and curve; empty in records of version 1."""
    curve: list[dict[str, int | float]] = []
    """Measurements during training: each point has "step" and any named numbers."""
    samples: list[Sample] = []
    """Continuations by both models."""
    gates: list[GateText] = []
    """Gates over short texts; empty for a method without block gates."""
    cost: Cost = Cost()
    """Time, memory and weights."""
    provenance: Provenance
    """Code, machine and seed."""
    config: dict[str, Any] = {}
    """The fully resolved run configuration."""

    @property
    def label(self) -> str:
        """How tables call this run."""
        return str(self.config.get("label") or self.method)

    @field_validator("created")
    @classmethod
    def _in_utc(cls, created: datetime) -> datetime:
        return created.astimezone(UTC)

    @field_validator("curve")
    @classmethod
    def _every_point_has_its_step(cls, curve: list[dict[str, int | float]]) -> list[dict[str, int | float]]:
        if any("step" not in point for point in curve):
            raise ValueError('every point of the curve needs "step"')
        return curve

    @model_validator(mode="after")
    def _no_metric_twice(self) -> Self:
        seen: set[tuple[object, ...]] = set()
        for metric in self.metrics:
            key = (metric.name, metric.of, metric.set, metric.layer)
            if key in seen:
                raise ValueError(f"metric twice: {key}")
            seen.add(key)
        return self


class Failure(_Schema):
    """A run of a comparison that failed: why, in one line."""

    format: Literal["neutral-residues/failure"] = FAILURE_FORMAT
    """Says that the file is ours."""
    label: str = Field(min_length=1)
    """How tables call this run."""
    reason: str = Field(min_length=1)
    """The error, in one line."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    """When it failed, UTC, ISO 8601."""


def write_record(path: Path | str, record: Record) -> None:
    """Write `record` to `path` as JSON, whole or not at all.

    Raises:
        UserError: if it holds a NaN or an infinity, or something that JSON cannot hold; or the disk refuses.
    """
    try:
        write_json(Path(path), record.model_dump(mode="json"))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"the record for {path} cannot be written", got=str(error), allowed="finite numbers") from error


def read_record(path: Path | str) -> Record:
    """The record in the file at `path`.

    Raises:
        UserError: if there is no such file, it is no JSON (or was cut short), not one of our records, from newer code
            than this, or its fields are wrong.
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
        raise UserError(f"record {path}: {where}: {first['msg']}", got=repr(first["input"])[:80]) from error


def find(record: Record, name: str, *, set: str, of: Of, layer: int | None = None) -> Metric:
    """The one metric of that name, evaluation set, model and layer.

    Raises:
        UserError: if the record does not hold it; names what it does hold.
    """
    for metric in record.metrics:
        if (metric.name, metric.set, metric.of, metric.layer) == (name, set, of, layer):
            return metric
    wanted = _label(name, set, of, layer)
    held = [_label(m.name, m.set, m.of, m.layer) for m in record.metrics if m.layer is None or layer is not None]
    raise UserError("the record lacks a metric", got=wanted, do=nearest(wanted, held) if held else "it holds none")


def validation_bits(record: Record) -> float | None:
    """Bits per byte at the end of training, mean over the target sets to validate on; None if none was measured.

    Learning rates are chosen by it, and the report shows what was chosen by it.
    """
    keys = [f"bits_per_byte/{s.name}" for s in record.sets if s.use == "validate" and s.role == "target"]
    measured = [point for point in record.curve if keys and all(key in point for key in keys)]
    if not measured:
        return None
    last = max(measured, key=lambda point: point["step"])
    return statistics.fmean(last[key] for key in keys)


def provenance(*, seed: int | None = None, device: str = "cpu", tokenizer_key: str | None = None) -> Provenance:
    """Where a record made now, by this process, comes from."""
    return Provenance(
        python=platform_module.python_version(),
        platform=f"{platform_module.system()} {platform_module.release()} {platform_module.machine()}",
        device=device,
        packages={package: _version(package) for package in PACKAGES},
        git_commit=_git_commit(),
        seed=seed,
        tokenizer_key=tokenizer_key,
    )


def _check_header(path: Path | str, value: Any) -> None:
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a record of neutral-residues", allowed=f'a JSON object with "format": "{FORMAT}"'
        )
    version = value.get("version")
    if isinstance(version, int) and version > VERSION:
        do = "update neutral-residues"
        raise UserError(f"record {path} is of a newer version", got=version, allowed=f"up to {VERSION}", do=do)


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
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "src" / "neutral_residues").is_dir():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
