"""The summary: Markdown for a model card."""

import pytest

from neutral_residues.report.aggregate import sections
from neutral_residues.report.load import Collection, collect
from neutral_residues.report.markdown import escaped, summary
from synthetic import make_comparison, two_seeds


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    collection = collect([make_comparison(tmp_path_factory.mktemp("work") / "comparison")])
    found = sections(collection.found)
    return summary(collection, found, [{"The plane": "fr-plane.png"}, {}])


def test_parts(text: str) -> None:
    title = "## What was learnt, what was forgotten: fr\n\nOn fr, neutral lowers bits per byte from"
    assert text.startswith(title)
    row = "| neutral | 0.001 | 2 | 20.0 | +0.45 ± 0.07 | 2.1100 ± 0.0141 | −47.25 ± 0.35 |"
    assert row in text.splitlines()
    for part in ("![The plane](fr-plane.png)", "What moved the bits per byte", "| not done yet |"):
        assert part in text
    assert r"\<script\>" in text
    assert "<script>" not in text


def test_tables_have_as_many_cells_in_every_line(text: str) -> None:
    tables = [part for part in text.split("\n\n") if part.startswith("| run |")]
    assert len(tables) == 5  # results of two sections, equal learning, tasks, unfinished runs
    for table in tables:
        assert len({line.replace("\\|", "").count("|") for line in table.splitlines()}) == 1


def test_tasks() -> None:
    collection = Collection(found=(), unfinished=())
    text = summary(collection, [two_seeds()], [{}])
    assert "neutral – English: blimp-en no change beyond noise (+0.1 ± 1.0)" in text
    assert "\n| neutral | clams-fr | target | acc \\[%\\] | 400 |" in text
    assert "\n\n\n" not in text


def test_escaping() -> None:
    assert escaped("a|b\n*c*") == r"a\|b \*c\*"
