"""`neutral compose`: combines several extensions in one folder."""

from collections.abc import Sequence
from pathlib import Path

from neutral_residues.cli.lines import print_line
from neutral_residues.composition.compose import average, compose
from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError, nearest
from neutral_residues.results.composition import read_composition
from neutral_residues.results.run_folder import RunFolder

OVER: dict[str, int | None] = {"route": 32, "inhibit": 1, "sum": None, "average": None}
"""Way of combining -> default number of last tokens over which gates are compared; None if gates
are not compared."""


def compose_folders(
    extensions: Sequence[str], output: Path, *, how: str, over: int | None = None
) -> None:
    """Combine extensions into the new folder `output`, and print what it contains. Options are
    those of the command."""
    if how not in OVER:
        raise UserError("--how", got=how, allowed=", ".join(OVER), do=nearest(how, OVER))
    if over is not None and OVER[how] is None:
        raise UserError(f"--over has no effect with --how {how}", got=over, do="leave it out")
    folders = named_folders(extensions)
    if how == "average":
        average(folders, output)
    else:
        compose(folders, output, over=OVER[how] if over is None else over)
    print_line(f"{output}: {how} of {', '.join(folders)}")


def named_folders(extensions: Sequence[str]) -> dict[str, Path]:
    """Name of each extension -> its folder. Arguments are "name=folder", or a folder alone: the
    name is then that of the folder, or, for a folder of several extensions, those in it."""
    folders: dict[str, Path] = {}
    for text in extensions:
        name, separator, path = text.rpartition("=")
        folder = Path(path)
        found = {} if separator else _held(folder)
        for each, where in (found or {name or folder.resolve().name: folder}).items():
            if each in folders:
                do = "give each a name of its own: name=folder"
                raise UserError("two extensions have one name", got=each, do=do)
            folders[each] = where
    return folders


def _held(folder: Path) -> dict[str, Path]:
    """Name -> folder of the extensions in a folder of several; empty for other folders."""
    weights = RunFolder(folder).weights
    composition = read_composition(weights)
    if composition is None:
        return {}
    check_digests(weights)
    return {name: weights / name for name in composition.names}
