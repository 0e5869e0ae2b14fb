"""What the README says is run, or held against the project."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import yaml

from neutral_residues.cells import expand
from neutral_residues.comparison import CompareConfig, load_comparison
from neutral_residues.config import checked, load_run, make_run
from neutral_residues.demo import DEMO_DATA
from neutral_residues.methods import find_method
from neutral_residues.results import find, read_record

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
IGNORED = {"__pycache__", "py.typed"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language, in order; "" for those that name none."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def test_the_python_example_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(blocks("python")[0], "README.md", "exec"), {})
    assert printed.getvalue().strip() in [block.strip() for block in blocks("")]


def test_the_three_lines_define_a_trainer() -> None:
    from transformers import Trainer

    namespace: dict[str, type] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), namespace)
    assert issubclass(namespace["MyTrainer"], Trainer)


def test_run_file_and_comparison_are_valid() -> None:
    run, comparison = blocks("yaml")
    assert make_run(yaml.safe_load(run)).budget == 0.20
    methods = checked(CompareConfig, yaml.safe_load(comparison)).methods
    assert all(find_method(entry.method) for entry in methods)


RUNS = [path for folder in ("", "small", "large") for path in sorted((ROOT / "recipes" / folder).glob("*.yaml"))]
COMPARISONS = sorted((ROOT / "recipes" / "compare").glob("*.yaml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: f"{p.parent.stem}/{p.stem}")
def test_every_recipe_is_valid(path: Path) -> None:
    assert load_run(path).data.source_share == 0.1


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda p: p.stem)
def test_every_comparison_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell is checked, with the backbone that ships in place of the shared one, which is the same."""
    monkeypatch.chdir(ROOT)
    config = load_comparison(path, (f"set.model={DEMO_DATA / 'backbone'}",))
    assert len(expand(config).trained) >= len(config.methods) - 1
    assert config.seeds == ((0,) if path.stem == "figure1" else (0, 1, 2))


def test_commands_exist() -> None:
    from neutral_residues.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    named = set(re.findall(r"`neutral (\w+)", README))
    assert named == known
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


ROWS = {
    "full fine-tuning": "finetune",
    "LoRA on the same budget": "lora",
    "gate-less adapter": "adapter",
    "**neutral residues**": "neutral",
}


@pytest.mark.parametrize("title", ROWS)
def test_the_results_are_those_of_the_records(title: str) -> None:
    record = read_record(ROOT / "docs" / "records" / f"french-{ROWS[title]}.json")
    row = next(line for line in README.splitlines() if line.startswith(f"| {title} |"))
    printed = [float(cell.strip(" *").split()[0]) for cell in row.strip("|").split("|")[1:]]
    sets = ("en", "en-pubmed", "en-wiki", "fr")
    measured = [find(record, "bits_per_byte", set=name, of="extended").value for name in sets]
    assert printed == [round(value, 3) for value in measured]


def test_the_file_tree_is_complete() -> None:
    package = ROOT / "src" / "neutral_residues"
    files = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and not IGNORED & set(path.parts)
    }
    tree = next(block for block in blocks("") if "src/neutral_residues/" in block)
    named = set(re.findall(r"^\s+((?:\w+/)?\w+\.py)\b", tree, flags=re.MULTILINE))
    assert named == files
