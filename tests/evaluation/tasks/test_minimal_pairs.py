"""Minimal pairs that ship, files of the user's, and bad files."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.minimal_pairs import (
    SHIPPED,
    pair_files,
    pairs_task,
    read_pairs,
)

LINE = json.dumps({"good": "Il dort.", "bad": "Il dorment.", "uid": "agreement"}) + "\n"


def test_what_ships() -> None:
    files = pair_files()
    assert list(files) == ["blimp-en", "clams-de", "clams-en", "clams-fr"]
    assert sum(path.stat().st_size for path in files.values()) < 60_000
    licence = (SHIPPED / "LICENSE.md").read_text(encoding="utf-8")
    for name, path in files.items():
        assert path.name in licence
        pairs = read_pairs(path)
        constructions = Counter(pair["uid"] for pair in pairs)
        assert len(set(constructions.values())) == 1, name
        assert all(pair["good"] != pair["bad"] for pair in pairs)
    assert len(Counter(pair["uid"] for pair in read_pairs(files["blimp-en"]))) == 67


def test_a_prefix_is_a_fair_sample() -> None:
    constructions = Counter(pair["uid"] for pair in read_pairs(pair_files()["clams-fr"])[:70])
    assert len(constructions) == 7
    assert max(constructions.values()) < 20


def test_the_sample_is_part_of_the_full_files(shared: Path) -> None:
    for name, path in pair_files(shared / "data").items():
        assert path.parent == shared / "data"
        full = {(pair["good"], pair["bad"]) for pair in read_pairs(path)}
        assert {(pair["good"], pair["bad"]) for pair in read_pairs(pair_files()[name])} < full


def test_a_folder_goes_first_and_may_bring_more(tmp_path: Path) -> None:
    (tmp_path / "clams.fr.jsonl").write_text(2 * LINE)
    (tmp_path / "mine.hu.jsonl.gz").write_bytes(gzip.compress((3 * LINE).encode()))
    (tmp_path / "fr.test.jsonl").write_text("not pairs, and not named like pairs")
    files = pair_files(tmp_path)
    assert set(files) == {"blimp-en", "clams-de", "clams-en", "clams-fr", "mine-hu"}
    assert [len(read_pairs(files[name])) for name in ("clams-fr", "mine-hu")] == [2, 3]


def test_a_model_that_cannot_tell_is_not_right() -> None:
    # lm-eval takes the first of equals.
    config = pairs_task("clams-fr", pair_files()["clams-fr"]).config
    assert config["doc_to_choice"](json.loads(LINE))[config["doc_to_target"]] == "Il dort."
    assert config["doc_to_target"] != 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no items in .*; got 0 pairs"),
        (LINE.encode(), "got 1 pairs"),
        (b'{"good": "a"}\n', "line 1 is not a pair"),
        ((LINE + '{"good": "", "bad": "b", "uid": "c"}').encode(), "line 2 is not a pair"),
        ((LINE + "[1]").encode(), "line 2 is not a pair"),
        (LINE.encode() + b"{", "line 2 is not JSON"),
        (b"\xff\xfe", "is damaged"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.fr.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


def test_bad_folders(tmp_path: Path) -> None:
    (tmp_path / "mine.fr.jsonl.gz").write_bytes(gzip.compress(LINE.encode() * 99)[:-20])
    with pytest.raises(UserError, match="is damaged"):
        read_pairs(tmp_path / "mine.fr.jsonl.gz")
    with pytest.raises(UserError, match="is not a folder"):
        pair_files(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no minimal pairs"):
        pair_files(tmp_path / "empty")
