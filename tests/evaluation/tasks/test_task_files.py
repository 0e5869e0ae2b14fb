"""Files that ship, files of the user's, and bad files."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.item_forms import LETTERS
from neutral_residues.evaluation.tasks.task_files import (
    SHIPPED,
    file_task,
    language_of,
    read_items,
    task_files,
    task_name,
)

PAIR = {"good": "Il dort.", "bad": "Il dorment.", "uid": "agreement"}
CHOICE = {"query": "Two and two are", "choices": ["four", "five"], "gold": 0}


def write(path: Path, *items: Any) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def test_what_ships() -> None:
    files = task_files(SHIPPED)
    assert list(files) == ["blimp-en", "clams-de", "clams-en", "clams-fr"]
    assert sum(path.stat().st_size for path in files.values()) < 60_000
    licence = (SHIPPED / "LICENSE.md").read_text(encoding="utf-8")
    for name, path in files.items():
        assert path.name in licence
        _, pairs = read_items(path)
        constructions = Counter(pair["uid"] for pair in pairs)
        assert len(set(constructions.values())) == 1, name
        assert all(pair["good"] != pair["bad"] for pair in pairs)
    assert len(Counter(pair["uid"] for pair in read_items(files["blimp-en"])[1])) == 67


def test_the_first_pairs_are_a_fair_sample_and_other_items_keep_their_order(tmp_path: Path) -> None:
    pairs = file_task(task_files(SHIPPED)["clams-fr"], "clams-fr").items[:70]
    constructions = Counter(pair["uid"] for pair in pairs)
    assert len(constructions) == 7
    assert max(constructions.values()) < 20
    items = [CHOICE | {"query": f"{n} is"} for n in range(30)]
    assert file_task(write(tmp_path / "x_en.jsonl", *items), "x_en").items == items


def test_the_sample_is_part_of_the_full_files(shared: Path) -> None:
    for name, path in task_files(shared / "data").items():
        full = {(pair["good"], pair["bad"]) for pair in read_items(path)[1]}
        sample = read_items(task_files(SHIPPED)[name])[1]
        assert {(pair["good"], pair["bad"]) for pair in sample} < full


def test_names_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "clams.fr.jsonl", PAIR, PAIR)
    packed = gzip.compress((3 * (json.dumps(CHOICE) + "\n")).encode())
    (tmp_path / "mine_hu.jsonl.gz").write_bytes(packed)
    for other in ("fr.test.jsonl", "mine_hu.examples.jsonl", "mine.jsonl", "README.md"):
        (tmp_path / other).write_text("not a task by its name")
    files = task_files(tmp_path)
    assert list(files) == ["clams-fr", "mine_hu"]
    assert [len(read_items(path)[1]) for path in files.values()] == [2, 3]
    assert [language_of(name) for name in files] == ["fr", "hu"]
    assert task_name(Path("a/any.name_of.mine.jsonl.gz")) == "any-name_of-mine"
    assert language_of("letters-mmlu_en") == "en"
    assert language_of("mine") is None


def test_what_is_kept_of_an_item(tmp_path: Path) -> None:
    more = {"row": 7, "subject": "sums", "tags": ["a"]}
    task = file_task(write(tmp_path / "x_en.jsonl", CHOICE | more, CHOICE), "x_en")
    assert task.items == [CHOICE | {"subject": "sums"}, CHOICE]


def test_examples_beside_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "x_en.jsonl", CHOICE, CHOICE, CHOICE)
    alone = file_task(file, "x_en")
    assert (alone.most_fewshot, alone.config["fewshot_split"]) == (2, alone.config["test_split"])
    write(tmp_path / "x_en.examples.jsonl", *[CHOICE] * 5)
    task = file_task(file, "x_en")
    assert (task.most_fewshot, task.config["fewshot_split"]) == (5, "examples")
    assert task.key != alone.key
    write(tmp_path / "x_en.examples.jsonl", PAIR, PAIR)
    with pytest.raises(UserError, match=r"x_en.examples.jsonl, line 1 has another form"):
        file_task(file, "x_en")
    pairs = file_task(write(tmp_path / "y_en.jsonl", PAIR, PAIR, PAIR), "y_en")
    assert pairs.most_fewshot == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too few items in .*; got 0 items"),
        (json.dumps(CHOICE).encode(), "got 1 items"),
        (b'{"text": "a"}\n' * 2, "line 1 is not an item of a task; got text; allowed: query, ch"),
        (json.dumps([CHOICE, CHOICE]).encode() + b"\n[]", "line 1: not an object; got list"),
        (json.dumps([CHOICE], indent=1).encode(), "line 1: not JSON; .*allowed: one object per"),
        (json.dumps(CHOICE).encode() + b"\n{", "line 2: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (json.dumps(CHOICE).encode() + b"\n" + json.dumps(PAIR).encode(), "line 2 has another fo"),
        (b"\xff\xfe", "line 1: not UTF-8"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine_fr.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_items(path)
    assert "\n" not in str(caught.value)


def test_letters_need_their_own_query(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1 has no letter_query"):
        read_items(write(tmp_path / "x_en.jsonl", CHOICE, CHOICE), LETTERS)


def test_bad_folders(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(PAIR).encode() * 99)
    for wrong in (packed[:-20], packed[:30] + packed[40:]):
        (tmp_path / "mine.fr.jsonl.gz").write_bytes(wrong)
        with pytest.raises(UserError, match="is broken or cut short"):
            read_items(tmp_path / "mine.fr.jsonl.gz")
    with pytest.raises(UserError, match="is not a folder"):
        task_files(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no tasks in .*NAME_LANG.jsonl"):
        task_files(tmp_path / "empty")


def test_a_small_file_that_unpacks_to_a_large_one(tmp_path: Path) -> None:
    items = f"{json.dumps(CHOICE)}\n".encode() * 10_000
    (tmp_path / "x_en.jsonl.gz").write_bytes(gzip.compress(items) * 200)
    with pytest.raises(UserError, match="is too large for a file of its kind"):
        read_items(tmp_path / "x_en.jsonl.gz")
