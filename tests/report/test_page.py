"""The page's text without a browser: complete, self-contained, safe from what it shows."""

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from neutral_residues.report.aggregate import sections
from neutral_residues.report.load import collect
from neutral_residues.report.page import render
from neutral_residues.results.record import Record
from neutral_residues.results.store import write_record
from paths import RECORDS
from synthetic import HOSTILE, make_comparison, make_record, score


class Page(HTMLParser):
    """Elements, addresses and the text of data scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.data: list[str] = []
        self._in_data = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.tags.append(tag)
        for key in ("src", "href", "action", "data", "srcset"):
            if key in values:
                self.addresses.append(values[key] or "")
        self.ids += [values["id"] or ""] if "id" in values else []
        self._in_data = values.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


def page_of(*paths: Path) -> str:
    collection = collect(paths)
    return render(collection, sections(collection.found))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_comparison(tmp_path_factory.mktemp("work") / "comparison")


@pytest.fixture(scope="module")
def text(comparison: Path) -> str:
    return page_of(comparison)


def test_the_page_asks_for_no_address(text: str, comparison: Path) -> None:
    page = Page(text)
    assert [a for a in page.addresses if not a.startswith("#") and a != "data:,"] == []
    # Outside plotly's own code, which only a map or a link would make ask for anything.
    ours = "".join(re.split(r"(?s)<script>.*?</script>", text))
    for part in ("http:", "https:", "url(", str(comparison.parent)):
        assert part not in ours
    assert "default-src 'none'" in text


def test_hostile_text_stays_text(text: str) -> None:
    page = Page(text)
    assert page.tags.count("script") - len(page.data) == 2  # plotly, and ours
    assert "alert('x')" not in text
    assert "&lt;script&gt;alert" in text
    for data in page.data:
        assert not re.search("[<>&]", data)
        assert set(json.loads(data)) == {"data", "layout", "views"}
    assert len(page.ids) == len(set(page.ids))


def test_a_hostile_label_stays_text(tmp_path: Path) -> None:
    record = make_record(method=HOSTILE, settings={"label": None})
    write_record(tmp_path / "record.json", record)
    text = page_of(tmp_path)
    assert "alert('x')</script>" not in text
    assert "\\u003cscript\\u003e" in text  # in the data of a figure


EVIL = f"{HOSTILE}<img src=https://evil.example/x onerror=alert(1)>](javascript:alert(2))"


def texts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a text in nested lists and dictionaries."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], str):
            yield value, key
        elif isinstance(value[key], dict | list):
            yield from texts(value[key])


def test_no_text_of_a_record_is_more_than_text(tmp_path: Path) -> None:
    record = make_comparison(tmp_path / "c") / "cells" / "fr" / "neutral" / "0.001-None-0"
    value = json.loads((record / "record.json").read_text())
    value.pop("digest", None)
    value["sets"] = {f"{EVIL}{name}": found for name, found in value["sets"].items()}
    changed: list[str] = []
    for place, key in texts(value):
        before, place[key] = place[key], f"{EVIL}{len(changed)}"
        try:
            Record.model_validate(value)
            changed.append(str(key))
        except ValidationError:  # one of a few words
            place[key] = before
    assert {"method", "label", "model", "text", "excerpt", "device", "git_commit"} <= {*changed}
    (tmp_path / "record.json").write_text(json.dumps(value))
    text = page_of(tmp_path / "record.json")
    page = Page(text)
    assert page.tags.count("script") - len(page.data) == 2
    assert "img" not in page.tags
    assert [a for a in page.addresses if not a.startswith("#") and a != "data:,"] == []
    assert "evil.example" in text


def test_what_the_page_says(text: str) -> None:
    for part in (
        "report of 33 runs",
        "not done yet",
        "the loss is not finite",
        "The worst documents of en (source)",
        "Why the numbers moved",
        "Gates over text",
        "Click a column to sort.",
        "Python 3.11.7, torch 2.13.0",
    ):
        assert part in text
    assert text.count("A few tokens carry it.") == 1  # lora on English


def test_tasks_are_on_the_page(tmp_path: Path) -> None:
    record = make_record(tasks=[score("clams-fr", 0.03, num_truncated=7)])
    write_record(tmp_path / "record.json", record)
    text = page_of(tmp_path)
    assert "French: clams-fr better (+3.0 ± 1.0)" in text
    assert "truncated prompts" in text
    assert "Change on tasks, with 95 % intervals" in text


def test_the_records_that_ship() -> None:
    text = page_of(*sorted(RECORDS.glob("*.json")))
    for name in ("fr", "de", "latex"):
        assert f"On {name}, neutral" in text
        assert f">{name}</h2>" in text
