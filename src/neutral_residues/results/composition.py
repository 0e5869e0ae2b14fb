"""`composition.json`, in a folder of several extensions that are used together. No torch.

Each extension is a PEFT adapter in a subfolder of its name, as PEFT itself saves several.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from neutral_residues.results.base import Part, read_part, write_part

FILE = "composition.json"
NAME = r"[\w-]+"
"""Of an extension: it names a folder."""


class Composition(Part):
    """The whole file."""

    format: Literal["neutral-residues/composition"] = "neutral-residues/composition"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    names: list[Annotated[str, Field(pattern=f"^{NAME}$")]] = Field(min_length=2)
    """Of the extensions, and of the subfolders that hold them."""
    over: int | None = Field(ge=1)
    """Number of last tokens over which gates are compared: of the extensions whose gates are open
    at a token, only the one with the largest gate is active; null: all are active."""


def write_composition(folder: Path, composition: Composition) -> None:
    """Write it beside the extensions."""
    write_part(folder / FILE, composition)


def read_composition(folder: Path) -> Composition | None:
    """That of the folder, None if it holds none; a UserError if it is damaged."""
    file = folder / FILE
    return read_part(Composition, file, "composition") if file.is_file() else None
