"""`neutral vocabulary`: the curve, the recommended size, examples, and what changes."""

from pathlib import Path

from command_line import Neutral
from paths import DEMO_BACKBONE
from tiny_run import write_run
from two_scripts import ENGLISH, FRENCH, UKRAINIAN, documents, write_texts


def run_file(folder: Path, target: list[str], **vocabulary: object) -> Path:
    write_texts(folder / "target.jsonl", documents(target))
    write_texts(folder / "en.jsonl", documents(ENGLISH))
    train = [
        {"name": "mine", "role": "target", "path": str(folder / "target.jsonl")},
        {"name": "en", "role": "source", "path": str(folder / "en.jsonl")},
    ]
    data = {"train": train, "evaluate": train, "cache": str(folder / "cache")}
    values = {"model": str(DEMO_BACKBONE), "output": str(folder / "run"), "data": data}
    return write_run(folder, values | ({"vocabulary": vocabulary} if vocabulary else {}))


def test_what_is_printed(tmp_path: Path, neutral: Neutral) -> None:
    run = run_file(tmp_path, UKRAINIAN)
    code, printed = neutral("vocabulary", run)
    assert code == 0, printed
    for part in ("7.04", "0.992", "recommended", "▁бачить", "at most 16.0 MiB a corpus"):
        assert part in printed
    assert "en (train): 0 of 40 source documents change" in printed
    assert "en (evaluate): 0 of 40 source documents change" in printed
    assert "By construction no text changes" in printed
    assert "run file" not in printed
    code, printed = neutral("vocabulary", run, "vocabulary.size=33")
    assert "33" in printed.split("run file")[0].splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_one_script(tmp_path: Path, neutral: Neutral) -> None:
    run = run_file(tmp_path, FRENCH)
    code, printed = neutral("vocabulary", run)
    assert code == 2
    assert "set keep: unseen" in printed
    code, printed = neutral("vocabulary", run, "vocabulary.size=9", "vocabulary.keep=unseen")
    assert code == 0, printed
    assert "0 of 40 source documents change" in printed
    assert "other source text changes where such a token occurs" in printed.replace("\n", " ")
