"""Pages that are generated from the code: nothing is missing, and every page's marker is known."""

import re

import pytest

from families import FAMILIES
from neutral_residues.config.base import Settings
from neutral_residues.config.comparison import CompareConfig
from neutral_residues.config.run import RunConfig
from paths import ROOT, load_script

hooks = load_script(ROOT / "docs" / "hooks.py")

PAGES = sorted((ROOT / "docs").glob("*.md"))
MARKER = re.compile(r"<!-- generated: (\S+) -->")


def fields(schema: type[Settings]) -> list[tuple[str, str]]:
    """Name and docstring of every key of a file, those of its sections too."""
    found = []
    for name, field in schema.model_fields.items():
        found.append((name, hooks.one_line(field.description)))
        section = hooks.nested_settings(field.annotation)
        if section is not None:
            found += fields(section)
    return found


@pytest.mark.parametrize(("name", "schema"), [("run", RunConfig), ("comparison", CompareConfig)])
def test_every_key_is_there_with_its_docstring(name: str, schema: type[Settings]) -> None:
    page = hooks.TABLES[f"{name}-file"]()
    for key, text in fields(schema):
        rows = re.findall(rf"^\| `(?:[\w.\[\]]*\.)?{key}` \|.*$", page, flags=re.MULTILINE)
        assert any(text.replace("|", "&#124;") in row for row in rows), key
    assert "Undefined" not in page


def test_types_and_limits_are_words() -> None:
    page = hooks.run_file()
    assert "| `budget` | number > 0 | `0.2` |" in page
    assert "| `data.train[].role` | `source` or `target` | **required** |" in page
    assert "| `training.adam_betas` | list of number | `[0.9, 0.95]` |" in page
    assert '| `data.train[].template` | text | `"{prompt}\\n{completion}"` |' in page
    assert "| `residues.layers_to_transform` | list of integer or null | `null` |" in page


def test_every_family_and_command_is_there() -> None:
    assert {name for name in FAMILIES if f"`{name}`" not in hooks.families()} == set()
    commands = re.findall(r"^## neutral (\w+)$", hooks.commands(), flags=re.MULTILINE)
    assert {"extend", "compare", "export"} < set(commands)
    assert "`--to`" in hooks.commands()


def test_every_marker_of_a_page_is_known_and_every_table_is_used() -> None:
    markers = [marker for page in PAGES for marker in MARKER.findall(page.read_text("utf-8"))]
    assert sorted(markers) == sorted(hooks.TABLES)
    assert "<!--" not in hooks.on_page_markdown(f"<!-- generated: {markers[0]} -->")


def test_links_of_included_files_stay_in_the_site() -> None:
    index = hooks.on_page_markdown("<!-- include: README.md -->")
    assert "](lab.md)" in index
    assert "](run-file.md)" in index
    assert "](docs/" not in index
