"""What is found behind a path, what is written, and what is refused; the page's text without a
browser."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neutral_residues.cli import app as cli
from neutral_residues.errors import UserError
from neutral_residues.report.build import write_report
from neutral_residues.report.gate_heatmap import level, visible
from neutral_residues.report.load import collect
from neutral_residues.results.record import Cost, Record
from neutral_residues.results.store import write_record
from paths import RECORDS
from synthetic import HOSTILE, make_comparison, make_record


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
        self.addresses += [
            values[key] or ""
            for key in ("src", "href", "action", "data", "srcset")
            if key in values
        ]
        self.ids += [values["id"] or ""] if "id" in values else []
        self._in_data = values.get("type") == "application/json"

    def handle_data(self, data: str) -> None:
        if self._in_data:
            self.data.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_data = False


def report(*paths: Path, output: Path | None = None) -> tuple[Path, str]:
    printed = io.StringIO()
    page = write_report(list(paths), output, console=Console(file=printed, width=500))
    return page, printed.getvalue()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_comparison(tmp_path_factory.mktemp("work") / "comparison")
    report(folder)
    return folder


def test_a_comparison_gives_its_cells(comparison: Path) -> None:
    found = collect([comparison])
    assert len(found.found) == 72
    assert found.found[0].origin.startswith("comparison/cells/de/adapter/")
    states = {cell.origin.rpartition("/")[2]: cell.reason for cell in found.unfinished}
    assert states == {"lr9-s0": f"the loss is not finite {HOSTILE}", "lr1-s9": None}


def test_a_record_reached_twice_counts_once(tmp_path: Path) -> None:
    write_record(tmp_path / "run" / "record.json", make_record())
    assert len(collect([tmp_path / "run", tmp_path / "run" / "record.json"]).found) == 1


def broken(folder: Path, what: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "record.json"
    write_record(file, make_record())
    value: dict[str, Any] = json.loads(file.read_text())
    if what == "truncated":
        file.write_text(file.read_text()[:300])
    elif what == "newer":
        file.write_text(json.dumps(value | {"version": 99}))
    elif what == "foreign":
        file.write_text(json.dumps({"hello": 1}))
    elif what == "missing":
        file.unlink()
        return file
    elif what == "empty folder":
        file.unlink()
        return folder
    elif what == "unfinished":
        file.unlink()
        (folder / "run.yaml").write_text("model: x\n")
        return folder
    elif what == "empty comparison":
        file.unlink()
        (folder / "compare.yaml").write_text("{}\n")
        return folder
    return file


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", "is not whole JSON"),
        ("newer", "version; got 99; allowed: 1"),
        ("foreign", "is not a record of neutral-residues"),
        ("missing", "no such file or folder"),
        ("empty folder", "neither a run nor a comparison"),
        ("unfinished", "a run that is not finished"),
        ("empty comparison", "no record in"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    what: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "report"
    path = broken(tmp_path / "run", what)
    monkeypatch.setattr(sys, "argv", ["neutral", "report", str(path), "--output", str(output)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_where_the_report_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(Path("a/record.json"), make_record())
    write_record(Path("b/record.json"), make_record("lora"))
    assert report(Path("a"))[0] == Path("a/report/index.html")
    page, printed = report(Path("a"), Path("b"))
    assert page == Path("runs/report/index.html")
    assert "On fr, neutral lowers bits per byte" in printed
    assert "page: runs/report/index.html" in printed
    assert {p.name for p in page.parent.iterdir()} == {
        "index.html",
        "summary.md",
        *(
            f"fr-{name}.{kind}"
            for name in ("plane", "training", "layers", "gates")
            for kind in ("png", "svg")
        ),
    }


def test_neither_torch_nor_its_friends_are_loaded(tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", make_record())
    code = (
        "import sys; from neutral_residues.cli.app import app; app(['report', sys.argv[1]],"
        " standalone_mode=False); print([name for name in ('torch', 'transformers', 'peft',"
        " 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_earlier_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    write_record(tmp_path / "run" / "record.json", make_record())
    page, _ = report(tmp_path / "run")
    before = page.stat().st_ino
    report(tmp_path / "run")
    assert page.stat().st_ino != before
    notes = page.parent / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"is not an earlier report; got notes\.txt"):
        report(tmp_path / "run")
    assert notes.read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("<h1>somebody's site</h1>")
    with pytest.raises(UserError, match="is not an earlier report"):
        report(tmp_path / "run", output=other)


def test_the_same_records_give_the_same_bytes(comparison: Path, tmp_path: Path) -> None:
    report(comparison, output=tmp_path / "again")
    first, second = (
        {p.name: p.read_bytes() for p in f.iterdir()}
        for f in (comparison / "report", tmp_path / "again")
    )
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_the_page_asks_for_no_address(comparison: Path) -> None:
    text = (comparison / "report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [a for a in page.addresses if not a.startswith("#") and a != "data:,"] == []
    # Outside plotly's own code, which only a map or a link would make ask for anything.
    ours = "".join(part for part in re.split(r"(?s)<script>.*?</script>", text))
    assert "http:" not in ours
    assert "https:" not in ours
    assert "url(" not in ours
    assert "default-src 'none'" in text
    assert str(comparison.parent) not in text


def test_hostile_text_stays_text(comparison: Path) -> None:
    text = (comparison / "report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") - len(page.data) == 2  # plotly, and ours
    assert "alert('x')" not in text
    assert "&lt;script&gt;alert" in text
    for data in page.data:
        assert not re.search("[<>&]", data)
        assert set(json.loads(data)) == {"data", "layout", "views"}
    assert len(page.ids) == len(set(page.ids))


def test_a_hostile_label_stays_text(tmp_path: Path) -> None:
    record = make_record().model_copy(
        update={"method": HOSTILE, "config": make_record().config | {"label": None}}
    )
    write_record(tmp_path / "record.json", record)
    page, _ = report(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "alert('x')</script>" not in text
    assert "\\u003cscript\\u003e" in text  # in the data of a figure
    assert r"\<script\>" in (page.parent / "summary.md").read_text(encoding="utf-8")


def test_failed_and_unfinished_cells_are_named(comparison: Path) -> None:
    for name in ("index.html", "summary.md"):
        text = (comparison / "report" / name).read_text(encoding="utf-8")
        assert "the loss is not finite" in text
        assert "not done yet" in text


def test_the_page_says_why_the_numbers_moved(comparison: Path, tmp_path: Path) -> None:
    text = (comparison / "report" / "index.html").read_text(encoding="utf-8")
    assert text.count("A few tokens carry it.") == 2  # lora on English, once in each section
    assert (
        "lora on en: half of all change is carried by 2 of 300 different tokens, 2.0 % of the text"
        in text
    )
    assert "The worst documents of en (source)" in text
    write_record(tmp_path / "record.json", make_record(forgetting=10.0, bits=3.5))
    page, _ = report(tmp_path)
    data = next(
        json.loads(text)["data"]
        for text in Page(page.read_text(encoding="utf-8")).data
        if "rare" in text
    )
    drawn = {trace["name"]: trace["x"][0] for trace in data if trace.get("meta")}
    assert drawn == pytest.approx(
        {"punctuation": -0.005, "frequent words": 0.025, "rare words": 0.03}
    )
    summary = (page.parent / "summary.md").read_text(encoding="utf-8")
    assert (
        "en +0.050 (rare words +0.030, frequent words +0.025); fr −0.500 (rare words −0.300"
        in summary
    )
    write_record(tmp_path / "old.json", without_breakdowns())
    page, _ = report(tmp_path / "old.json", output=tmp_path / "old")
    assert "Why the numbers moved" not in page.read_text(encoding="utf-8")


def without_breakdowns() -> Record:
    record = make_record()
    update = {"breakdown": None}
    sets = {name: found.model_copy(update=update) for name, found in record.sets.items()}
    return record.model_copy(update={"sets": sets})


def test_summary_is_markdown_for_a_model_card(comparison: Path) -> None:
    text = (comparison / "report" / "summary.md").read_text(encoding="utf-8")
    assert text.startswith(
        "## What was learnt, what was forgotten: de\n\nOn de, neutral lowers bits per byte from"
        " 5.000"
    )
    rows = [line for line in text.splitlines() if line.startswith("| neutral |")]
    assert (
        rows[0] == "| neutral | 0.001 | 2 | 20.0 | +0.45 ± 0.07 | 2.1100 ± 0.0141 | −57.80 ± 0.28 |"
    )
    # The table of results is one table, and so is that of equal learning.
    heads = [part for part in text.split("\n\n") if part.startswith("| run |")]
    assert all(
        len({line.replace("\\|", "").count("|") for line in part.splitlines()}) == 1
        for part in heads
    )
    for picture in re.findall(r"\]\((.*?)\)", text):
        assert (comparison / "report" / picture).is_file()


def test_pictures_are_pictures(comparison: Path) -> None:
    for target in ("de", "fr"):
        for name in ("plane", "training", "layers", "gates"):
            file = comparison / "report" / f"{target}-{name}"
            assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
            svg = file.with_suffix(".svg").read_text(encoding="utf-8")
            assert svg.startswith("<?xml")
            assert "<dc:date>" not in svg


def test_levels_of_gates() -> None:
    assert [level(g, 1.0) for g in (0.0, 1e-6, 0.124, 0.126, 0.99, 1.0)] == [0, 1, 1, 2, 8, 8]
    assert level(0.0, 0.0) == 0
    assert visible("a\n") == "a↵"
    assert visible("\x00\u00a0é") == "� é"
    assert visible("") == "∅"


def test_records_of_an_evaluation_alone(tmp_path: Path) -> None:
    bare: dict[str, Any] = {
        "kind": "evaluate",
        "curve": [],
        "samples": [],
        "gates": [],
        "cost": Cost(),
    }
    for name in ("one", "two"):
        config = {"extension": f"runs/{name}", "context_tokens": 128, "stride_tokens": 64}
        record = make_record().model_copy(update={**bare, "config": config})
        write_record(tmp_path / f"{name}.json", record)
    page, printed = report(tmp_path / "one.json", tmp_path / "two.json", output=tmp_path / "report")
    assert "neutral (extension runs/one) lowers" in printed
    assert {p.name for p in page.parent.glob("*.png")} == {"fr-plane.png", "fr-layers.png"}


def test_the_records_in_docs(tmp_path: Path) -> None:
    page, printed = report(*sorted(RECORDS.glob("*.json")), output=tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    for name in ("fr", "de", "latex"):
        assert f"On {name}, neutral" in printed
        assert f">{name}</h2>" in text
