"""Reading and writing records: JSON files with the results of a run, its model and its code.

    write_record(path, Record(kind="evaluate", method="neutral", sets=...,
    provenance=provenance(seed=0)))
    read_record(path).sets["wiki"].rise_percent

Files are written atomically, and never contain NaN or infinity. Reading raises a UserError for an
unknown field, another kind or version of file, or a damaged file. The fields are documented in
`record.py`. A run that failed in a comparison has a `Failure` instead. No torch.
"""

import platform
import shlex
import subprocess
from importlib import metadata
from pathlib import Path

from neutral_residues.errors import UserError
from neutral_residues.results.base import read_part, write_part
from neutral_residues.results.record import Failure, Provenance, Record

PACKAGES = (
    "neutral-residues",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "tokenizers",
    "lm-eval",
)
DESCRIBE = "git --no-optional-locks describe --always --dirty --abbrev=40 --exclude=*"


def write_record(path: Path | str, record: Record) -> None:
    """Write `record` to `path` as JSON, atomically. Raises a UserError if it contains NaN, infinity
    or values that JSON cannot represent, or if the disk is full or not writable."""
    try:
        write_part(Path(path), record)
    except UserError:
        raise
    except ValueError as error:
        what = f"the record for {path} cannot be written"
        raise UserError(what, got=str(error), allowed="finite numbers") from error


def read_record(path: Path | str) -> Record:
    """Read the record in the file at `path`; raises a UserError as `read_part` does."""
    return read_part(Record, path, "record")


def read_failure(path: Path | str) -> Failure:
    """Read the failure in the file at `path`; raises a UserError as `read_part` does."""
    return read_part(Failure, path, "failure")


def provenance(
    *, seed: int | None = None, device: str = "cpu", tokenizer_key: str | None = None
) -> Provenance:
    """The provenance of a record that this process makes now."""
    return Provenance(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        device=device,
        packages={package: _version(package) for package in PACKAGES},
        git_commit=_git_commit(),
        seed=seed,
        tokenizer_key=tokenizer_key,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    # Only for a checkout of this project: an installed copy may be inside another repository.
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or not (root / "src" / "neutral_residues").is_dir():
        return None
    try:
        found = subprocess.check_output(
            shlex.split(DESCRIBE), cwd=root, text=True, timeout=20, stderr=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.strip() or None
