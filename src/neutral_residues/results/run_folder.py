"""The output folder of a run: its files, the lock on it, and whether a run in it can be resumed. No
torch.

    run.yaml        the resolved configuration, written before the first step
    checkpoints/    the newest complete checkpoints
    extension/      the result: a PEFT adapter folder, or a whole model for full fine-tuning
    tasks/          for each finished task, its scores and the answers of both models to all items
    record.json     all results of the run, see `record.py`
    failure.json    instead of the record: why the run failed in a comparison
    .lock           lock file of the process that works in the folder

The record is written last: a run with a record is finished.
"""

import shutil
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

from neutral_residues.config.base import differences, to_yaml
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, locked, write_text

LOCK = ".lock"


class RunFolder:
    """Paths of the files in one output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "run.yaml"
        self.checkpoints = path / "checkpoints"
        self.extension = path / "extension"
        self.tasks = path / "tasks"
        self.record = path / "record.json"
        self.failure = path / "failure.json"

    @property
    def is_finished(self) -> bool:
        return self.record.is_file()

    @property
    def weights(self) -> Path:
        """The folder with the weights: that of the run's extension, or this folder if it is not the
        output of a run, but an extension itself."""
        return self.extension if self.config.is_file() else self.path

    def read_config(self) -> RunConfig | None:
        """The configuration of the run; None if the folder is not the output of a run."""
        return load_run(self.config) if self.config.is_file() else None

    def check(self, config: RunConfig) -> None:
        """Raise a UserError if the folder contains another run or other files. Writes nothing."""
        with disk_errors(self.path):
            is_a_run = self.config.is_file()
        if not is_a_run:
            check_free(self.path, but=(LOCK, self.failure.name))
            return
        there = load_run(self.config)
        if there != config:
            found = differences(there.model_dump(mode="json"), config.model_dump(mode="json"))
            key, old, new = next(found)
            raise UserError(
                f"output folder {self.path} holds another run: {key} was {old!r}",
                got=repr(new),
                do="choose another output, or delete that folder",
            )

    def write_config(self, config: RunConfig) -> None:
        """Reserve the folder for this run, after `check`, by writing the resolved configuration."""
        self.check(config)
        if not self.config.is_file():
            write_text(self.config, to_yaml(config))

    def lock(self, *, on_wait: Callable[[], None]) -> AbstractContextManager[None]:
        """Context in which no other process works in the folder. If one does, `on_wait` is called,
        and the context is entered when it has ended."""
        return locked(self.path / LOCK, on_wait=on_wait)

    def drop_extension(self) -> None:
        """Delete the weights of the extension; the record is kept."""
        shutil.rmtree(self.extension, ignore_errors=True)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints, which a finished run no longer needs."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def check_free(folder: Path, *, but: Collection[str] = ()) -> None:
    """Raise a UserError unless the folder is new, or empty except for files named in `but`."""
    with disk_errors(folder):
        inside = folder.iterdir() if folder.exists() else iter(())
        occupied = next((path for path in inside if path.name not in but), None)
    if occupied is not None:
        do = "choose an empty or new folder"
        raise UserError(f"output folder {folder} is not empty", got=occupied.name, do=do)
