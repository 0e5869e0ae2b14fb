"""`neutral compose`, and the commands that take what it wrote."""

import json
import shutil
from pathlib import Path

from command_line import Neutral, assert_one_line


def test_a_composition_generates_and_is_measured(
    trained: Path, tmp_path: Path, neutral: Neutral
) -> None:
    run, both = trained / "run", tmp_path / "both"
    code, printed = neutral("compose", run, f"other={run}", "--how", "route", "--output", both)
    assert (code, printed) == (0, f"{both}: route of run, other\n")
    assert json.loads((both / "composition.json").read_text())["over"] == 32
    code, printed = neutral("generate", both, "le chat", "--max-new-tokens", 5)
    assert code == 0, printed
    text = f"target:fr={trained / 'fr.jsonl'}"
    code, printed = neutral("evaluate", both, "--set", text, "--context", 32)
    assert code == 0, printed
    assert_one_line(neutral("evaluate", both), "nothing to measure")
    source = f"source:en={trained / 'en.jsonl'}"
    assert_one_line(neutral("calibrate", both, "--on", source), "calibrate each extension")


def test_the_ways(trained: Path, tmp_path: Path, neutral: Neutral) -> None:
    two, overs = (trained / "run", f"other={trained / 'run'}"), {"sum": None, "inhibit": 1}
    for how, over in overs.items():
        neutral("compose", *two, "--how", how, "--output", tmp_path / how)
        assert json.loads((tmp_path / how / "composition.json").read_text())["over"] == over
    neutral("compose", *two, "--how", "average", "--output", tmp_path / "average")
    assert (tmp_path / "average" / "adapter_config.json").is_file()


def test_a_folder_of_several_is_composed_anew(
    trained: Path, tmp_path: Path, neutral: Neutral
) -> None:
    run, both, new = trained / "run", tmp_path / "both", tmp_path / "new"
    neutral("compose", run, f"other={run}", "--how", "sum", "--output", both)
    code, printed = neutral("compose", both, f"third={run}", "--how", "route", "--output", new)
    assert (code, printed) == (0, f"{new}: route of run, other, third\n")
    (both / "other" / "adapter_config.json").write_text("{}")
    damaged = neutral("compose", both, "--how", "sum", "--output", tmp_path / "damaged")
    assert_one_line(damaged, "is damaged")


def test_what_is_refused(trained: Path, tmp_path: Path, neutral: Neutral) -> None:
    run, out = trained / "run", tmp_path / "out"
    assert_one_line(neutral("compose", run, run, "--how", "sum", "--output", out), "have one name")
    two = (run, f"other={run}")
    wrong = neutral("compose", *two, "--how", "rout", "--output", out)
    assert_one_line(wrong, "did you mean 'route'?")
    useless = neutral("compose", *two, "--how", "sum", "--over", 8, "--output", out)
    assert_one_line(useless, "--over has no effect with --how sum")
    copy = Path(shutil.copytree(run / "extension", tmp_path / "copy"))
    (copy / "adapter_config.json").write_text("{}")
    damaged = neutral("compose", run, copy, "--how", "sum", "--output", out)
    assert_one_line(damaged, "is damaged")
    assert not out.exists()
