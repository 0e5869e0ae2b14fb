"""A checkpoint counts only once it is complete: the list of its files and sizes is written last."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.files import write_json

COMPLETE = "complete.json"
"""Written last into a checkpoint: the size of every file in it."""


def seal_checkpoint(folder: Path, *, sums: dict[str, Any]) -> None:
    """Flush every file to disk, then write down their sizes: from now on the checkpoint counts."""
    sizes = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    write_json(folder / COMPLETE, {"sizes": sizes, "sums": sums})


def whole_checkpoints(folder: Path) -> list[Path]:
    """Sealed checkpoints by step, oldest first. A folder without a seal was being written when the
    run died."""
    sealed = [p for p in folder.glob("checkpoint-*") if (p / COMPLETE).is_file()]
    return sorted(sealed, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint to resume from; leftovers of an unfinished save are removed.

    Raises:
        UserError: if a file of it has another size than when it was sealed (cut short).
    """
    for leftover in folder.glob("checkpoint-*"):
        if not (leftover / COMPLETE).is_file():
            shutil.rmtree(leftover)
    checkpoints = whole_checkpoints(folder)
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
