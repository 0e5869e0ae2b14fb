"""The output folder of a run: what lies where, who may write there, and whether it can be resumed.
No torch.

    run.yaml        the resolved configuration, written before the first step
    checkpoints/    whole checkpoints, the newest ones
    extension/      the result: a PEFT adapter folder, or a whole model for full fine-tuning
    tasks/          each finished task: its scores, and both models' answers to every item
    record.json     every number of the run, see `results.py`
    failure.json    instead of the record: why the run failed inside a comparison
    .lock           while a process works in the folder

The record is written last, so its presence means: finished.
"""

import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neutral_residues.config.base import to_yaml
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, locked, write_text

LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one output folder."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "run.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def extension(self) -> Path:
        return self.path / "extension"

    @property
    def tasks(self) -> Path:
        return self.path / "tasks"

    @property
    def record(self) -> Path:
        return self.path / "record.json"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    @property
    def is_finished(self) -> bool:
        return self.record.is_file()

    def check(self, config: RunConfig) -> None:
        """Raise unless this run may have the folder; nothing is written.

        Raises:
            UserError: if it holds another run or other files.
        """
        with disk_errors(self.path):
            is_a_run = self.config.is_file()
        if is_a_run:
            self._check_same_run(config)
        else:
            check_free(self.path, but=(LOCK, self.failure.name))

    def write_config(self, config: RunConfig) -> None:
        """Reserve the folder for this run by writing the resolved configuration into it.

        Raises:
            UserError: as `check`, or if it cannot be written.
        """
        self.check(config)
        if not self.config.is_file():
            write_text(self.config, to_yaml(config))

    def lock(self, *, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Within the block no other process works in the folder; waits for one that does.

        Args:
            on_wait: called once if there is one.
        """
        return locked(self.path / LOCK, on_wait=on_wait)

    def _check_same_run(self, config: RunConfig) -> None:
        there = load_run(self.config)
        if there != config:
            key, old, new = next(
                _differences(there.model_dump(mode="json"), config.model_dump(mode="json"))
            )
            raise UserError(
                f"output folder {self.path} holds another run: {key} was {old!r}",
                got=repr(new),
                do="choose another output, or delete that folder",
            )

    def drop_extension(self) -> None:
        """Free the disk of weights that nobody needs; the record stays."""
        shutil.rmtree(self.extension, ignore_errors=True)

    def drop_checkpoints(self) -> None:
        """Free the disk once the result is safe."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def check_free(folder: Path, *, but: Collection[str] = ()) -> None:
    """Raise a UserError unless the folder is new or empty, files of the names `but` not counted."""
    with disk_errors(folder):
        inside = folder.iterdir() if folder.exists() else iter(())
        occupied = next((path for path in inside if path.name not in but), None)
    if occupied is not None:
        raise UserError(
            f"output folder {folder} is not empty",
            got=occupied.name,
            do="choose an empty or new folder",
        )


def _differences(old: Any, new: Any, key: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in {**old, **new}:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield key, old, new
