"""What the files that a user writes have in common: YAML, overrides, and errors of one line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from neutral_residues.errors import UserError, first_line, nearest
from neutral_residues.files import check_plain, read_text


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after reading, numbers are
    finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


Schema = TypeVar("Schema", bound=BaseModel)


def read_values(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a YAML file, with overrides such as "training.steps=200" applied; nothing
    is checked yet.

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
    """Plain values and nothing else; a UserError that begins with `what`."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        problem = str(getattr(error, "problem", error))
        raise UserError(f"{what} is not YAML", got=line + problem, do="fix this line") from error
    except Exception as error:  # of a value that is none: a 13th month, !!int x, 5,000 brackets
        got = first_line(error)
        raise UserError(f"{what} holds a value that YAML cannot read", got=got) from error
    check_plain(value, what, with_paths=True)
    return value


def read_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Dotted key -> value of overrides such as "training.steps=200"; a UserError for one without a
    key or a value."""
    found = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            allowed = "key=value, for example training.steps=200"
            raise UserError("override", got=override, allowed=allowed)
        found[key] = _read_yaml(text, f"the value of override {key}")
    return found


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one value by its dotted key, such as "training.steps"; sections are made. A UserError if
    a part of the key is not a section."""
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"override {key}", got=f"{parent} is not a section", do="check the key")
    values[last] = value


def checked(schema: type[Schema], values: Any, *, file: Path | str | None = None) -> Schema:
    """`values` as an instance of `schema`; a UserError of one line, which begins with `file`, for
    the first thing that is wrong."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise one_line(error, schema, file=file) from error


def to_yaml(config: Settings) -> str:
    """The resolved configuration as YAML; read back it is the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def one_line(
    error: ValidationError, schema: type[BaseModel], *, file: Path | str | None = None
) -> UserError:
    """What pydantic found wrong first, by its dotted key; `schema` knows what is near to it."""
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
    """Field names of the section that `location` points into, from the root `section` on."""
    for name in location:
        field = section.model_fields.get(str(name))  # None for an index or a key of a dictionary
        annotation = field.annotation if field else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        sections = (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
        section = next(sections, section)
    return set(section.model_fields)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys: "training.steps" -> 1000."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
