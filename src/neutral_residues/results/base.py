"""Base classes of the JSON files that runs write: strict fields, one-line errors. No torch.

    write_part(path, part)               JSON, with a digest of its contents as the last key
    read_part(Record, path, "record")    reads it back, and checks fields and digest

A file without a digest is read too: delete the digest to edit a file on purpose.
"""

import math
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from neutral_residues.config.base import checked
from neutral_residues.digest import short_hash
from neutral_residues.errors import UserError
from neutral_residues.files import read_json, write_json


class Part(BaseModel):
    """Base class of all parts of a file: unknown keys are errors, instances are immutable, and
    numbers must be finite."""

    # With "constants", a NaN inside a free-form dict is not turned into null, so that writing it
    # fails.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )


class PartWithRatios(Part):
    """A part that stores sums, and writes their ratios (computed fields) into its JSON too. Reading
    fails if stored ratios are not those of the sums, or cannot be computed from them."""

    @model_validator(mode="wrap")
    @classmethod
    def _ratios_agree(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        ratios = cls.model_computed_fields
        result = handler({key: entry for key, entry in value.items() if key not in ratios})
        for name in ratios:
            try:
                found, stored = getattr(result, name), value.get(name)
            except ArithmeticError as error:
                raise ValueError(f"{name} cannot be computed from the sums: {error}") from error
            if isinstance(found, float) and not math.isfinite(found):
                raise ValueError(f"{name} is {found} by the sums")
            if name in value and stored != found and not _is_close(stored, found):
                raise ValueError(f"{name} is {stored!r}, but the sums give {found!r}")
        return result


def _is_close(one: object, other: object) -> bool:
    """Whether two numbers are equal up to rounding, which differs between processors."""
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return False
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


Schema = TypeVar("Schema", bound=Part)


DIGEST = "digest"
"""The key in a file under which its digest is stored."""


def write_part(path: Path, part: Part) -> None:
    """Write `part` as JSON with its digest, atomically. Raises a ValueError if it contains NaN."""
    values = part.model_dump(mode="json")
    write_json(path, values | {DIGEST: short_hash(values)})


def read_part(schema: type[Schema], path: Path | str, what: str) -> Schema:
    """Read the JSON file at `path` as an instance of `schema`; error messages call the file `what`
    ("record"). Raises a UserError if the file does not exist or is not JSON, and as `part_in`."""
    return part_in(schema, read_json(Path(path), what), path, what)


def part_in(schema: type[Schema], value: Any, path: Path | str, what: str) -> Schema:
    """Validate `value`, which was read from the JSON file at `path`, as an instance of `schema`.
    Raises a UserError for another `format` or `version`, a digest of other contents, or an invalid
    field."""
    # The format comes first: fields of another kind of file would give a misleading error.
    expected, version = (schema.model_fields[key].default for key in ("format", "version"))
    if not isinstance(value, dict) or value.get("format") != expected:
        allowed = f'a JSON object with "format": "{expected}"'
        raise UserError(f"{path} is not a {what} of neutral-residues", allowed=allowed)
    if value.get("version") != version:
        got, do = repr(value.get("version")), "read it with the neutral-residues that wrote it"
        raise UserError(f"{what} {path}: version", got=got, allowed=str(version), do=do)
    fields = {key: entry for key, entry in value.items() if key != DIGEST}
    if DIGEST in value and value[DIGEST] != short_hash(fields):
        do = "copy it again, or make it again; if it was edited on purpose, delete its digest"
        raise UserError(f"{what} {path} is damaged: its {DIGEST} is of other contents", do=do)
    return checked(schema, fields, file=path)
