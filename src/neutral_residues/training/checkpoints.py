"""A checkpoint counts once it is complete: the sizes of its files are written last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.files import write_json

COMPLETE = "complete.json"
"""Written last into a checkpoint: the size of every file in it."""


def mark_complete(folder: Path, *, sums: dict[str, Any]) -> None:
    """Flush every file to disk, then write their sizes and `sums` into `complete.json`."""
    sizes = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    write_json(folder / COMPLETE, {"sizes": sizes, "sums": sums})


def saved_sums(checkpoint: Path) -> dict[str, Any]:
    """The sums that `mark_complete` was given."""
    sums: dict[str, Any] = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))["sums"]
    return sums


def complete_checkpoints(folder: Path) -> list[Path]:
    """Oldest first. One without `complete.json` was being written when the run died."""
    complete = [p for p in folder.glob("checkpoint-*") if (p / COMPLETE).is_file()]
    return sorted(complete, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; removes what an unfinished save left.

    Raises:
        UserError: if a file of it has another size than when it was completed.
    """
    for leftover in folder.glob("checkpoint-*"):
        if not (leftover / COMPLETE).is_file():
            shutil.rmtree(leftover)
    checkpoints = complete_checkpoints(folder)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    sizes = json.loads((newest / COMPLETE).read_text(encoding="utf-8"))["sizes"]
    for name, size in sizes.items():
        file = newest / name
        actual = file.stat().st_size if file.is_file() else 0
        if actual != size:
            raise UserError(
                f"checkpoint {newest} is damaged: {name}",
                got=f"{actual} bytes",
                allowed=f"{size} bytes",
                do="delete that checkpoint folder to resume from the one before",
            )
    return newest
