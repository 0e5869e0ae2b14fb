"""The files in recipes/: every run file and every cell of every comparison is valid."""

from pathlib import Path

import pytest

from neutral_residues.compare.grid import expand
from neutral_residues.config.comparison import load_comparison
from neutral_residues.config.run import load_run
from neutral_residues.demo.run import DEMO_DATA
from paths import ROOT

RUNS = [
    path
    for folder in ("", "small", "large")
    for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))
]
COMPARISONS = sorted((ROOT / "recipes" / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: f"{p.parent.stem}/{p.stem}")
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_run(path).data.source_share == 0.1


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_every_comparison_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell is checked, with the backbone that ships in place of the shared one, which is the
    same."""
    monkeypatch.chdir(ROOT)
    config = load_comparison(path, (f"set.model={DEMO_DATA / 'backbone'}",))
    assert len(expand(config).trained) >= len(config.methods) - 1
    assert config.seeds == ((0,) if path.stem == "figure1" else (0, 1, 2))
