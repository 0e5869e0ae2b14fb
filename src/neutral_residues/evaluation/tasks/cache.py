"""A finished task on disk: what makes it this task, and whether it is whole.

Two files, written whole or not at all:

    NAME.jsonl     one line for each item: the item, both models' answers and scores
    NAME.json      its score for the record, what it was measured on, and the hash of the other file

The second comes last and counts only with the first as it was. No torch.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neutral_residues.files import disk_errors, write_json, write_text
from neutral_residues.results.record import TaskScore


@dataclass(frozen=True)
class Kept:
    """The two files of a finished task.

    Attributes:
        identity: what the task was measured on; with another one it is not the same task.
    """

    folder: Path
    name: str
    identity: dict[str, Any]

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def samples(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def read(self) -> TaskScore | None:
        """The score, if both files are there, whole, and of this very task and model."""
        try:
            found = json.loads(self.summary.read_text(encoding="utf-8"))
            whole = found["samples_sha256"] == hashlib.sha256(self.samples.read_bytes()).hexdigest()
            return (
                TaskScore.model_validate(found["score"])
                if whole and found["of"] == self.identity
                else None
            )
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def write(self, score: TaskScore, lines: Sequence[str]) -> None:
        """The samples first: without the other file they do not count."""
        text = "".join(f"{line}\n" for line in lines)
        write_text(self.samples, text)
        sealed = hashlib.sha256(text.encode()).hexdigest()
        write_json(
            self.summary,
            {"of": self.identity, "samples_sha256": sealed, "score": score.model_dump(mode="json")},
        )


def weights_key(folder: Path, backbone: str, revision: str | None = None) -> str:
    """Names an extended model: hash of the weight files in `folder` and of the backbone's name and
    revision."""
    digest = hashlib.sha256(f"{backbone}@{revision}".encode())
    with disk_errors(folder):
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def value_hash(value: Any) -> str:
    """Names anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
