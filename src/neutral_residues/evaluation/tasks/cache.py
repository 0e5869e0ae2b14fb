"""Stores the scores and answers of finished tasks.

Two files, each written atomically:

    NAME.jsonl     one line for each item: the item, both models' answers and scores
    NAME.json      the scores for the record, what they depend on, and the digest of NAME.jsonl

NAME.json is written last, and is only valid while NAME.jsonl is unchanged. No torch.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from neutral_residues.digest import file_digest, from_cache
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, read_json, write_text
from neutral_residues.results.base import Part, read_part, write_part
from neutral_residues.results.composition import FILE as COMPOSITION
from neutral_residues.results.record import TaskScore


class CachedScores(Part):
    """The contents of NAME.json."""

    format: Literal["neutral-residues/task-scores"] = "neutral-residues/task-scores"
    version: Literal[1] = 1
    identity: dict[str, Any]
    """What the scores depend on: weights, items, settings."""
    samples_digest: str
    """Digest of NAME.jsonl, see `file_digest`."""
    scores: list[TaskScore]


@dataclass(frozen=True)
class TaskCache:
    """The two files of one task; stored scores with another identity are ignored."""

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
        """The stored scores; None if there are none, they are damaged or have another identity."""
        found = from_cache(self.summary, self._checked)
        return found.scores if found and found.identity == self.identity else None

    def _checked(self) -> CachedScores:
        found = read_part(CachedScores, self.summary, "task scores")
        with disk_errors(self.samples):
            digest = file_digest(self.samples)
        if digest != found.samples_digest:
            raise UserError(f"{self.samples} is damaged: it is not as it was written")
        return found

    def write(self, scores: Sequence[TaskScore], lines: Iterable[str]) -> None:
        """Store the scores, and the answers as lines of JSON. Answers are written first: without
        the summary they are ignored."""
        write_text(self.samples, "".join(f"{line}\n" for line in lines))
        summary = CachedScores(
            identity=self.identity, samples_digest=file_digest(self.samples), scores=list(scores)
        )
        write_part(self.summary, summary)


def weights_key(folder: Path, backbone: str, revision: str | None = None) -> str:
    """Hash that identifies an extended model: of the weight files in `folder` and its subfolders,
    the thresholds of its gates, `composition.json`, and the backbone's name and revision."""
    digest = hashlib.sha256(f"{backbone}@{revision}".encode())
    with disk_errors(folder):
        for config in sorted(folder.rglob("adapter_config.json")):
            thresholds = read_json(config, "adapter configuration").get("thresholds")
            if thresholds:
                digest.update(json.dumps(thresholds, sort_keys=True).encode())
        for path in sorted([*folder.rglob("*.safetensors"), *folder.glob(COMPOSITION)]):
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def value_hash(value: Any) -> str:
    """Hash of a value that JSON can represent."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
