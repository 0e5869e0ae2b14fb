"""A finished task on disk.

Two files, each written atomically:

    NAME.jsonl     one line for each item: the item, both models' answers and scores
    NAME.json      the scores for the record, what they were measured on, and the hash of the other
                   file

The second is written last and counts only while the first is unchanged. No torch.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neutral_residues.files import disk_errors, write_json, write_text
from neutral_residues.results.record import TaskScore


@dataclass(frozen=True)
class TaskCache:
    """The two files of one task; stored scores of another identity do not count."""

    folder: Path
    name: str
    identity: dict[str, Any]  # what the scores depend on: weights, items, settings

    @property
    def summary(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def samples(self) -> Path:
        return self.folder / f"{self.name}.jsonl"

    def read(self) -> list[TaskScore] | None:
        """The scores, if both files are there, complete, and have this identity."""
        try:
            found = json.loads(self.summary.read_text(encoding="utf-8"))
            digest = hashlib.sha256(self.samples.read_bytes()).hexdigest()
            if (found["identity"], found["samples_sha256"]) != (self.identity, digest):
                return None
            return [TaskScore.model_validate(score) for score in found["scores"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, scores: Sequence[TaskScore], lines: Iterable[str]) -> None:
        """The samples first: without the summary they do not count."""
        text = "".join(f"{line}\n" for line in lines)
        write_text(self.samples, text)
        summary = {
            "identity": self.identity,
            "samples_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "scores": [score.model_dump(mode="json") for score in scores],
        }
        write_json(self.summary, summary)


def weights_key(folder: Path, backbone: str, revision: str | None = None) -> str:
    """Identifies an extended model: hash of the weight files in `folder`, of thresholds on its
    gates, and of the backbone's name and revision."""
    digest = hashlib.sha256(f"{backbone}@{revision}".encode())
    config = folder / "adapter_config.json"
    with disk_errors(folder):
        if config.is_file():
            thresholds = json.loads(config.read_text(encoding="utf-8")).get("thresholds")
            if thresholds:
                digest.update(json.dumps(thresholds, sort_keys=True).encode())
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def value_hash(value: Any) -> str:
    """Hash of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
