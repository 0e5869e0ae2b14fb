"""`neutral compose`: several extensions made into one folder."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from neutral_residues.composition.compose import average, compose
from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError, nearest
from neutral_residues.results.composition import read_composition
from neutral_residues.results.run_folder import RunFolder

OVER: dict[str, int | None] = {"route": 32, "inhibit": 1, "sum": None, "average": None}
"""How extensions are composed -> over how many tokens the strongest gate is found."""


def compose_folders(
    extensions: Sequence[str], output: Path, *, how: str, over: int | None = None
) -> None:
    """Write the folder, and say what is in it."""
    if how not in OVER:
        raise UserError("--how", got=how, allowed=", ".join(OVER), do=nearest(how, OVER))
    if over is not None and OVER[how] is None:
        raise UserError(f"--over has no effect with --how {how}", got=over, do="leave it out")
    folders = named_folders(extensions)
    if how == "average":
        average(folders, output)
    else:
        compose(folders, output, over=OVER[how] if over is None else over)
    line = f"{output}: {how} of {', '.join(folders)}"
    Console().print(line, highlight=False, markup=False, soft_wrap=True)


def named_folders(extensions: Sequence[str]) -> dict[str, Path]:
    """Each extension's folder by its name, which is the folder's own unless one is given; of a
    folder that holds several, each of them."""
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
    """The extensions in a folder of several; empty for one of another kind."""
    weights = RunFolder(folder).weights
    composition = read_composition(weights)
    if composition is None:
        return {}
    check_digests(weights)
    return {name: weights / name for name in composition.names}
