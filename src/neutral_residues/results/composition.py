"""`composition.json`, in a folder of several extensions that are used together. No torch.

Each extension is a PEFT adapter in a subfolder with its name, as `save_pretrained` of PEFT saves
several adapters.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from neutral_residues.results.base import Part, read_part, write_part

FILE = "composition.json"
NAME = r"[\w-]+"
"""Pattern for the name of an extension, which is the name of a folder too."""


class Composition(Part):
    """The contents of `composition.json`."""

    format: Literal["neutral-residues/composition"] = "neutral-residues/composition"
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    names: list[Annotated[str, Field(pattern=f"^{NAME}$")]] = Field(min_length=2)
    """Names of the extensions, and of their subfolders."""
    over: int | None = Field(ge=1)
    """null: all extensions are active. Else, of those whose gates are open at a token, only the one
    with the largest gate over this number of last tokens is active."""


def write_composition(folder: Path, composition: Composition) -> None:
    """Write `composition.json` into `folder`, which contains the extensions."""
    write_part(folder / FILE, composition)


def read_composition(folder: Path) -> Composition | None:
    """Read `composition.json` in `folder`; None if there is none. Raises a UserError if it is
    damaged."""
    file = folder / FILE
    return read_part(Composition, file, "composition") if file.is_file() else None
