"""Every run file and comparison that comes with the repository is valid; those of the demo's texts
find their files; the table in recipes/README.md is complete."""

import gzip
import re
from pathlib import Path

import pytest

from neutral_residues.compare.grid import expand
from neutral_residues.config.comparison import load_comparison
from neutral_residues.config.run import load_run
from paths import DEMO_BACKBONE, ROOT

RECIPES = ROOT / "recipes"
COMPARISONS = sorted((RECIPES / "compare").glob("*.yaml"))
RUNS = sorted(path for path in RECIPES.rglob("*.yaml") if path not in COMPARISONS)
DEMO_RUNS = [RECIPES / "french.yaml", RECIPES / "small" / "french.yaml"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.stem}/{path.stem}")
def test_every_run_file_is_valid(path: Path) -> None:
    config = load_run(path)
    is_one_of_several = path.parent.stem == "several" and not config.residues.per_target
    assert config.data.source_share == (0.2 if is_one_of_several else 0.1)


@pytest.mark.parametrize("path", DEMO_RUNS, ids=lambda path: f"{path.parent.stem}/{path.stem}")
def test_the_demos_model_and_texts_are_there(path: Path) -> None:
    config = load_run(path)
    assert ROOT / config.model == DEMO_BACKBONE
    data = config.data
    for corpus in (*data.train, *data.evaluate, *data.validate_on):
        assert corpus.path is not None
        assert (ROOT / corpus.path).is_file()


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_every_comparison_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    # The one model that is not in the repository is fetched by recipes/smollm2.py.
    config = load_comparison(path, (f"set.model={DEMO_BACKBONE}",))
    assert len(expand(config).trained) >= len(config.methods) - 1
    assert config.seeds == ((0,) if path.stem in ("figure1", "smollm2") else (0, 1, 2))


def test_the_table_names_every_recipe_and_where_its_numbers_are() -> None:
    table = (RECIPES / "README.md").read_text("utf-8")
    first_cells = "\n".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE))
    recipes = [*RECIPES.rglob("*.yaml"), *RECIPES.rglob("*.py")]
    named = re.findall(r"`(.+?)`", first_cells)
    assert sorted(named) == sorted(path.relative_to(RECIPES).as_posix() for path in recipes)
    headings = re.findall(r"^## [\d-]+: (.*)$", (ROOT / "LAB.md").read_text("utf-8"), re.MULTILINE)
    assert set(re.findall(r'"(.+?)"', table)) <= set(headings)
    for records in re.findall(r"`([\w-]+\.jsonl\.gz)`", table):
        assert (ROOT / "docs" / "comparisons" / records).is_file()


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "comparisons").iterdir()))
def test_packed_records_name_no_folder_of_a_machine(file: Path) -> None:
    records = gzip.decompress(file.read_bytes()).decode()
    assert '"output": "' in records
    assert not re.findall(r'": "/[^"]+"', records)
