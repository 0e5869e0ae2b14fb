"""The lab book's index is complete, and headings that the code refers to exist."""

import re

import pytest

from paths import PACKAGE, ROOT

LAB = (ROOT / "LAB.md").read_text(encoding="utf-8")
HEADINGS = re.findall(r"^## (\d{4}-\d\d-\d\d: .*)$", LAB, flags=re.MULTILINE)
REFERENCE = re.compile(r'LAB\.md, "(.+?)"', flags=re.DOTALL)


def test_the_index_is_complete() -> None:
    anchors = [re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS]
    assert re.findall(r"^- \[.*\]\(#(.*)\), ", LAB, flags=re.MULTILINE) == anchors


REFERENCES = [
    (path.relative_to(PACKAGE).as_posix(), " ".join(title.split()))
    for path in sorted(PACKAGE.rglob("*.py"))
    for title in REFERENCE.findall(path.read_text("utf-8"))
]


@pytest.mark.parametrize(("file", "title"), REFERENCES)
def test_a_heading_that_the_code_names_exists(file: str, title: str) -> None:
    assert title in [heading.partition(": ")[2] for heading in HEADINGS]
