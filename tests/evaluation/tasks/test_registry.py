"""Names to tasks; which benchmarks exist is asked of the installed lm-eval."""

from pathlib import Path

import pytest

from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.languages import LANGUAGES
from neutral_residues.evaluation.tasks.registry import find_tasks, paper_suite

pytest.importorskip("lm_eval")

SETS = {"fr": "target", "en": "source", "en-wiki": "source"}


@pytest.fixture(scope="module")
def index() -> frozenset[str]:
    from neutral_residues.evaluation.tasks.lm_eval_bridge import known_tasks

    return known_tasks()


def names(*asked: str, **options: object) -> list[str]:
    """Of tasks that need no look at lm-eval."""
    tasks, _ = find_tasks(asked, sets=SETS, index=lambda: pytest.fail("asked lm-eval"), **options)  # type: ignore[arg-type]
    return [task.name for task in tasks]


def test_suites_of_ours_need_no_lm_eval() -> None:
    cloze = ["cloze-fr", "cloze-en", "cloze-en-wiki"]
    assert names("quick") == ["blimp-en", "clams-en", "clams-fr", *cloze]
    assert names("minimal-pairs-fr", "cloze-en") == ["clams-fr", "cloze-en"]
    assert names("cloze", "cloze-fr", "clams-de") == [*cloze, "clams-de"]


def test_what_a_task_is_known_by() -> None:
    tasks, _ = find_tasks(["quick", "clams-de"], sets=SETS, index=frozenset)
    found = {task.name: (task.suite, task.language, task.role) for task in tasks}
    assert found["clams-fr"] == ("quick", "fr", "target")
    assert found["cloze-en-wiki"] == ("quick", "en", "source")
    assert found["clams-de"] == (None, "de", "none")


def test_the_papers_tasks_by_the_names_that_lm_eval_has(index: frozenset[str]) -> None:
    tasks, missing = paper_suite("fr", index)
    assert {(task.name, task.num_fewshot, task.role) for task in tasks} == {
        ("arc_challenge", 0, "source"), ("hellaswag", 0, "source"), ("mmlu", 5, "source"),
        ("commonsense_qa", 5, "source"), ("belebele_eng_Latn", 0, "source"),
        ("arc_fr", 0, "target"), ("hellaswag_fr", 0, "target"), ("m_mmlu_fr", 5, "target"),
        ("belebele_fra_Latn", 0, "target"),
    }  # fmt: skip
    assert missing == ["CommonsenseQA (fr)"]
    assert [task.name for task in paper_suite("ja", index)[0][5:]] == [
        "global_mmlu_full_ja", "ja_leaderboard_jcommonsenseqa", "belebele_jpn_Jpan",
    ]  # fmt: skip


def test_every_language_has_belebele_and_most_have_more(index: frozenset[str]) -> None:
    assert len(LANGUAGES) >= 30
    found = {code: [task.name for task in paper_suite(code, index)[0]] for code in LANGUAGES}
    assert all(any(name.startswith("belebele_") for name in names[-1:]) for names in found.values())
    assert all(name in index for names in found.values() for name in names)
    assert sum(len(names) >= 8 for names in found.values()) >= 28
    assert len(found["en"]) == 5


def test_lm_evals_own_names(index: frozenset[str]) -> None:
    (task,), _ = find_tasks(["lambada_openai"], sets=SETS, index=lambda: index)
    assert (task.name, task.make, task.num_fewshot) == ("lambada_openai", None, None)
    assert task.role == "none"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("helaswag_fr", ["unknown task helaswag_fr", "did you mean 'hellaswag_fr'"]),
        (
            "minimal-pairs-hu",
            ["no minimal pairs in that language", "got hu", "allowed: de, en, fr"],
        ),
        ("paper-xx", ["unknown language in paper-xx", "da, de, el, en"]),
        ("cloze-frr", ["unknown evaluation set in cloze-frr", "did you mean 'fr'"]),
        ("minimal-pair-fr", ["unknown task", "did you mean 'minimal-pairs-fr'"]),
        ("xqzxqzxqz", ["unknown task", "clams-fr, ", "quick", "and lm-eval's own"]),
    ],
)
def test_unknown_names(index: frozenset[str], name: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        find_tasks([name], sets=SETS, index=lambda: index)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert len(str(caught.value)) < 900


def test_files_of_ones_own(tmp_path: Path) -> None:
    for file in ("mine.hu.jsonl", "mine_hu.jsonl.gz", "mine_fr.jsonl", "notes.txt"):
        (tmp_path / file).write_text("")
    assert names("minimal-pairs-hu", task_data=tmp_path) == ["mine-hu"]
    assert names("files", task_data=tmp_path) == ["mine-hu", "mine_fr", "mine_hu"]
    assert names("files-hu", task_data=tmp_path) == ["mine-hu", "mine_hu"]
    assert names("letters-mine_fr", "mine_fr", task_data=tmp_path) == ["letters-mine_fr", "mine_fr"]
    assert names("quick", task_data=tmp_path) == names("quick")
    path = f"file:{tmp_path}/mine_fr.jsonl"
    assert names(path, "mine_fr", task_data=tmp_path) == ["mine_fr"]  # the same, once
    assert names(f"letters-{path}") == ["letters-mine_fr"]
    tasks, _ = find_tasks(["files", path], sets=SETS, index=frozenset, task_data=tmp_path)
    found = {task.name: (task.suite, task.language, task.role) for task in tasks}
    assert found["mine_fr"] == ("files", "fr", "target")
    assert found["mine_hu"] == ("files", "hu", "none")


def test_a_file_is_refused_in_one_line(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine_fr.jsonl").write_text("")
    one, two = (f"file:{tmp_path}/{folder}/mine_fr.jsonl" for folder in ("one", "two"))
    for asked, options, parts in (
        (
            [f"file:{tmp_path}/one/mine_f.jsonl"],
            {},
            ["no such file", "did you mean 'mine_fr.jsonl'"],
        ),
        ([f"file:{tmp_path}/none/x.jsonl"], {}, ["no such file", "check the path"]),
        ([one, two], {}, ["two different tasks are called mine_fr"]),
        ([f"file:{tmp_path}/one"], {}, ["one is a folder", "--task-data"]),
        (["files"], {}, ["there are no task files", "--task-data"]),
        (["files-hu"], {"task_data": tmp_path / "one"}, ["no task files in that", "allowed: fr"]),
        (["mine_f"], {"task_data": tmp_path / "one"}, ["did you mean 'mine_fr'"]),
    ):
        with pytest.raises(UserError) as caught:
            find_tasks(asked, sets=SETS, index=frozenset, **options)  # type: ignore[arg-type]
        assert all(part in str(caught.value) for part in parts), caught.value
        assert "\n" not in str(caught.value)
