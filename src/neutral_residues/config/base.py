"""What every file that a user writes has in common: reading YAML, overrides, and errors of one
line."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from neutral_residues.errors import UserError, nearest


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


Schema = TypeVar("Schema", bound=Settings)


def read_values(path: Path, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a YAML file, with overrides such as "training.steps=200" applied; nothing
    is checked yet.

    Raises:
        UserError: if it cannot be read, is not UTF-8, not YAML or no mapping, or an override is
            none.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"run file {path} is not UTF-8", got=f"byte {error.start}", do="save it as UTF-8"
        ) from error
    except OSError as error:
        reason = (
            "no such run file"
            if isinstance(error, FileNotFoundError)
            else f"cannot read ({error.strerror})"
        )
        raise UserError(f"{reason}: {path}", do="check the path") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(
            f"run file {path} is not YAML",
            got=line + str(getattr(error, "problem", error)),
            do="mend that line",
        ) from error
    if not isinstance(values, dict):
        raise UserError(
            f"run file {path}", got=type(values).__name__, allowed="a mapping of settings"
        )
    for key, value in read_overrides(overrides).items():
        put(values, key, value)
    return values


def read_overrides(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Dotted key -> value of overrides such as "training.steps=200".

    Raises:
        UserError: for one without a key or a value.
    """
    found = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(
                "override", got=override, allowed="key=value, for example training.steps=200"
            )
        found[key] = yaml.safe_load(text)
    return found


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set one value by its dotted key, such as "training.steps"; sections are made.

    Raises:
        UserError: if a part of the key is no section.
    """
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"override {key}", got=f"{parent} is not a section", do="check the key")
    values[last] = value


def checked(schema: type[Schema], values: dict[str, Any]) -> Schema:
    """Settings of that kind from plain values.

    Raises:
        UserError: one line for the first thing that is wrong.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _one_line(error, schema) from error


def dump_run(config: Settings) -> str:
    """The resolved configuration as YAML; read back it is the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _one_line(error: ValidationError, root: type[Settings]) -> UserError:
    first = error.errors()[0]
    location = tuple(first["loc"])
    where = ".".join(str(part) for part in location) or "run file"
    if first["type"] == "extra_forbidden":
        known = _keys_at(location[:-1], root)
        return UserError(f"unknown key {where}", do=nearest(str(location[-1]), known))
    if first["type"] == "missing":
        return UserError(f"missing key {where}", do="add it to the run file")
    message = first["msg"].removeprefix("Value error, ")
    given = first["input"]
    got = given if isinstance(given, str | int | float | bool | type(None)) else None
    return UserError(f"{where}: {message}", got=repr(got) if got is not None else None)


def _keys_at(location: tuple[int | str, ...], section: type[Settings]) -> set[str]:
    """Field names of the settings section that `location` points into, from the root `section`
    on."""
    for part in location:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, Settings))
    return set(section.model_fields)
