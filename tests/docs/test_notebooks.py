"""The notebooks run from top to bottom, in an empty folder, and show what their text says."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from paths import ROOT

FOLDER = ROOT / "docs" / "notebooks"

SHOWN = {
    "french": ["French           target", "extended:", "backbone:", "index.html"],
    "compare": ["finetune   new text", "neutral    new text", "index.html"],
    "chat": ["nats per token", "extension: runs/chat/extension", "with extension"],
    "serve": ["backbone", "extended", "served", "Il y avait dans la ville"],
}
"""What is printed, among other things: a command that fails inside a notebook raises nothing."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Proactor event loop")
@pytest.mark.parametrize("name", SHOWN)
def test_it_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (tmp_path / "work").mkdir()
    NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path / "work")}}
    ).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())
    )
    assert "error:" not in printed
    assert [text for text in SHOWN[name] if text not in printed] == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_outputs_are_not_stored(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stem in SHOWN
    assert not any(cell.get("outputs") for cell in notebook.cells)
