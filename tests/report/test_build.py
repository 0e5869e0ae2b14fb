"""The folder of a report: where it goes, what is in it, and what it never replaces."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from neutral_residues.errors import UserError
from neutral_residues.report.build import write_report
from neutral_residues.results.record import Cost
from neutral_residues.results.store import write_record
from synthetic import make_record


def test_where_the_report_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_record(Path("a/record.json"), make_record())
    write_record(Path("b/record.json"), make_record("lora"))
    write_record(Path("c/record.json"), make_record("adapter", curve=[]))
    assert write_report([Path("c")]).page == Path("c/report/index.html")
    report = write_report([Path("a"), Path("b")])
    assert report.page == Path("runs/report/index.html")
    (verdict,) = report.verdicts
    assert verdict.startswith("On fr, neutral lowers bits per byte")
    pictures = {f"fr-{name}" for name in ("plane", "training", "layers", "spliced", "gates")}
    files = {f"{name}.{kind}" for name in pictures for kind in ("png", "svg")}
    assert {path.name for path in report.page.parent.iterdir()} == {
        "index.html",
        "summary.md",
        *files,
    }


def test_neither_torch_nor_its_friends_are_loaded(tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", make_record())
    code = (
        "import sys; from neutral_residues.cli.app import app; app(['report', sys.argv[1]],"
        " standalone_mode=False); print([name for name in ('torch', 'transformers', 'peft',"
        " 'datasets') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("On fr, neutral lowers bits per byte")
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_earlier_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_record(run / "record.json", make_record(gates=[], curve=[]))
    page = write_report([run]).page
    before = page.stat().st_ino
    write_report([run])
    assert page.stat().st_ino != before
    notes = page.parent / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(UserError, match=r"is not an earlier report; got notes\.txt"):
        write_report([run])
    assert notes.read_text() == "mine"
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.html").write_text("<h1>somebody's site</h1>")
    with pytest.raises(UserError, match="is not an earlier report"):
        write_report([run], other)


def test_nothing_is_left_of_a_report_that_fails(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(UserError):
        write_report([tmp_path / "record.json"], tmp_path / "report")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_record(tmp_path / f"{seed}.json", make_record(seed=seed))
    paths = [tmp_path / "0.json", tmp_path / "1.json"]
    first, second = (
        {path.name: path.read_bytes() for path in write_report(paths, folder).page.parent.iterdir()}
        for folder in (tmp_path / "one", tmp_path / "two")
    )
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


def test_records_of_an_evaluation_alone(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"kind": "evaluate", "curve": [], "samples": [], "gates": []}
    bare |= {"validation_sets": {}, "cost": Cost()}
    for name in ("one", "two"):
        windows = {"context_tokens": 128, "stride_tokens": 64}
        config = {"extension": f"runs/{name}", "evaluation": windows}
        record = make_record().model_copy(update={**bare, "config": config})
        write_record(tmp_path / f"{name}.json", record)
    report = write_report([tmp_path / "one.json", tmp_path / "two.json"], tmp_path / "report")
    assert "neutral (extension runs/one) lowers" in report.verdicts[0]
    pictures = {path.name for path in report.page.parent.glob("*.png")}
    assert pictures == {"fr-plane.png", "fr-layers.png", "fr-spliced.png"}
