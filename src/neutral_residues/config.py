"""The run file: everything that one run needs, in one YAML file, checked before anything expensive starts.

Every field is documented by the line under it. Unknown keys are errors that name the nearest known one. The fully resolved
configuration is written next to the results before the first step. No torch here.
"""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from neutral_residues.errors import UserError, nearest

Role = Literal["source", "target"]
"""source: what the backbone knows. target: what it is to learn."""


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Corpus(Settings):
    """Documents of one kind, from local files or from a `datasets` name."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    """How this corpus is called in every table, for example "fr"."""
    role: Role
    """source: like what the backbone knows; target: the new language or domain."""
    path: Path | None = None
    """A file: .txt (documents set off by blank lines), .jsonl, .parquet; the first two also as .gz or .zst."""
    dataset: str | None = None
    """Instead of `path`: the name of a dataset that `datasets.load_dataset` knows."""
    subset: str | None = None
    """Configuration of that dataset, for example "20231101.fr"."""
    split: str = "train"
    """Split of that dataset."""
    field: str = "text"
    """The JSON field or column that holds the text."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read only so many documents, from the beginning."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset goes with dataset")
        return self

    @property
    def origin(self) -> str:
        """The path or dataset name, for messages."""
        return str(self.path) if self.path is not None else f"{self.dataset}:{self.subset or 'default'}/{self.split}"
