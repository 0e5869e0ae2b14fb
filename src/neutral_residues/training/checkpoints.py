"""Checkpoints; complete ones are known by the digests of their files, which are written last."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neutral_residues.digest import DIGESTS, DamageError, check_digests, write_digests
from neutral_residues.files import flush_files, write_json

SUMS = "sums.json"
"""File of the sums for the next log line, which is incomplete when a checkpoint is saved."""


def mark_complete(folder: Path, *, sums: dict[str, Any]) -> None:
    """Write `sums`, flush every file of the checkpoint to disk, then write their digests."""
    write_json(folder / SUMS, sums)
    flush_files(folder)
    write_digests(folder)


def saved_sums(checkpoint: Path) -> dict[str, Any]:
    """The sums that `mark_complete` was given."""
    sums: dict[str, Any] = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
    return sums


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first. One without digests was still being
    written when the run ended."""
    complete = [p for p in folder.glob("checkpoint-*") if (p / DIGESTS).is_file()]
    return sorted(complete, key=lambda p: int(p.name.rsplit("-", 1)[1]))


def last_checkpoint(folder: Path, *, on_damaged: Callable[[str], object]) -> Path | None:
    """The newest complete and undamaged checkpoint, or None if there is no checkpoint. Deletes
    incomplete checkpoints, and damaged ones that are newer than the one returned.

    Args:
        on_damaged: called with a message before a damaged checkpoint is deleted.

    Raises:
        UserError: if every checkpoint is damaged, or one cannot be read; damaged ones are kept
            then.
    """
    for leftover in folder.glob("checkpoint-*"):
        if not (leftover / DIGESTS).is_file():
            shutil.rmtree(leftover)
    damaged: dict[Path, DamageError] = {}
    for checkpoint in reversed(complete_checkpoints(folder)):
        try:
            do = f"no other is left to resume from; delete {folder} to train from the first step"
            check_digests(checkpoint, required=True, do=do)
        except DamageError as error:
            damaged[checkpoint] = error
            continue
        for newer, why in damaged.items():
            on_damaged(f"{why.what}; it is removed")
            shutil.rmtree(newer)
        return checkpoint
    if damaged:
        raise next(iter(damaged.values()))
    return None
