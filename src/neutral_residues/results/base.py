"""Base of the files that a run leaves behind: strict fields, errors of one line. No torch.

    write_part(path, part)               JSON, with a digest of its contents as the last key
    read_part(Record, path, "record")    the same again, if it is as it was written

A file without a digest is not checked: somebody edited it and deleted it.
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
    """Base of all parts: unknown keys are errors, values never change, numbers are finite."""

    # "constants" keeps a NaN hidden in a free-form dict visible, so that writing refuses it instead
    # of storing null.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )


class PartWithRatios(Part):
    """A part that stores sums: its JSON also has its ratios (computed fields), and a file whose
    ratios are not those of its sums, or cannot be computed from them, is refused."""

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
    """Equal but for the last digits, which another processor may round otherwise."""
    if not isinstance(one, int | float) or not isinstance(other, int | float):
        return False
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9)


Schema = TypeVar("Schema", bound=Part)


DIGEST = "digest"
"""The key of a file's own digest."""


def write_part(path: Path, part: Part) -> None:
    """Write `part` as JSON with its digest, whole or not at all; a ValueError for NaN."""
    values = part.model_dump(mode="json")
    write_json(path, values | {DIGEST: short_hash(values)})


def read_part(schema: type[Schema], path: Path | str, what: str) -> Schema:
    """The part in the JSON file at `path`; `what` is what messages call the file ("record"). A
    UserError if there is no such file, it is not JSON (or was cut short), or as `part_in`."""
    return part_in(schema, read_json(Path(path), what), path, what)


def part_in(schema: type[Schema], value: Any, path: Path | str, what: str) -> Schema:
    """The part in what JSON held. A UserError that names `path` for another file than `schema` says
    by its `format` and `version`, one that is not as it was written, or a wrong field."""
    # A file that says to be something else, before its fields are complained of.
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
