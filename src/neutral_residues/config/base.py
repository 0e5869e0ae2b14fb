"""Reading and checking the YAML files that users write: overrides, and one-line errors."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from neutral_residues.errors import UserError, first_line, nearest
from neutral_residues.files import check_plain, read_text


class Settings(BaseModel):
    """Base class of all sections: unknown keys are errors, instances are immutable, and numbers
    must be finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Schema = TypeVar("Schema", bound=BaseModel)


def read_values(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a YAML file into plain values and apply overrides such as "training.steps=200", without
    validating any setting.

    Raises:
        UserError: if it cannot be read, is not UTF-8, YAML or a mapping, or an override is wrong.
    """
    values = _read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}", got=type(values).__name__, allowed="a mapping of settings")
    for key, value in read_overrides(overrides).items():
        put(values, key, value)
    return values


def _read_yaml(text: str, what: str) -> Any:
    """Parse YAML into plain values. `what` is the beginning of the UserError if that fails."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = str(getattr(error, "problem", error))
        raise UserError(f"{what} is not YAML", got=line + problem, do="fix this line") from error
    except Exception as error:  # PyYAML's for impossible values: a 13th month, 5,000 brackets
        got = first_line(error)
        raise UserError(f"{what} holds a value that YAML cannot read", got=got) from error
    check_plain(value, what, with_paths=True)
    return value


def read_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Parse overrides such as "training.steps=200" into dotted key -> value. Raises a UserError for
    one without a key or "="."""
    found = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            allowed = "key=value, for example training.steps=200"
            raise UserError("override", got=override, allowed=allowed)
        found[key] = _read_yaml(text, f"the value of override {key}")
    return found


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key, such as "training.steps", in place; missing sections are
    created. Raises a UserError if a parent in the key is not a section."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"override {key}", got=f"{parent} is not a section", do="check the key")
    values[last] = value


def checked(schema: type[Schema], values: Any, *, file: Path | str | None = None) -> Schema:
    """Validate `values` as an instance of `schema`. Raises a one-line UserError, which begins with
    `file`, for the first invalid value."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise one_line(error, schema, file=file) from error


def to_yaml(config: Settings) -> str:
    """The resolved configuration as YAML; reading it back gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def one_line(
    error: ValidationError, schema: type[BaseModel], *, file: Path | str | None = None
) -> UserError:
    """The first error that pydantic found, as a UserError with the dotted key; for an unknown key,
    it suggests the nearest key of `schema`."""
    first = error.errors()[0]
    location = tuple(first["loc"])
    prefix = f"{file}: " if file else ""
    where = ".".join(map(str, location))
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1], schema)
        return UserError(f"{prefix}unknown key {where}", do=nearest(str(location[-1]), known))
    if first["type"] == "missing":
        return UserError(f"{prefix}missing key {where}", do="add it")
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    plain = isinstance(given, str | int | float | bool)
    what = f"{where}: {message}" if where else message
    return UserError(prefix + what, got=repr(given)[:80] if plain else None)


def _keys_at(location: tuple[int | str, ...], section: type[BaseModel]) -> set[str]:
    """Field names of the section at `location`, a path that starts at the root `section`."""
    for name in location:
        field = section.model_fields.get(str(name))  # None for an index or a key of a dictionary
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        sections = (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
        section = next(sections, section)
    return set(section.model_fields)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: "training.steps" -> 1000."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted key and both values of each setting in which nested settings differ; None
    for a setting or entry of a list that one of them lacks."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = (dict(enumerate(it)) for it in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            inner = f"{key}.{name}" if key else str(name)
            yield from differences(old.get(name), new.get(name), inner)
    elif old != new:
        yield key, old, new
