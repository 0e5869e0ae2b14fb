"""`neutral evaluate`: sets and tasks, and what is refused before anything is measured."""

import json
import shutil
from pathlib import Path

import pytest

from command_line import Neutral, assert_one_line, changed
from neutral_residues.digest import DIGESTS
from tiny_run import SOURCE_WORDS, make_backbone, make_text, run_values, write_run


def test_the_sets_of_the_run_and_others(tmp_path: Path, finished: Path, neutral: Neutral) -> None:
    code, printed = neutral("evaluate", finished)
    assert code == 0
    assert "fr" in printed
    make_text(tmp_path / "wiki.jsonl", SOURCE_WORDS, documents=3, seed=9)
    record = tmp_path / "wiki.json"
    where = f"source:wiki={tmp_path / 'wiki.jsonl'}"
    options = ("--set", where, "--context", 32, "--stride", 8, "--kl", "--output", record)
    code, printed = neutral("evaluate", finished / "extension", *options)
    assert code == 0, printed
    assert "KL" in printed
    sets = json.loads(record.read_text())["sets"]
    assert list(sets) == ["wiki"]
    assert sets["wiki"]["kl_nats_per_token"] > 0


def test_tasks(tmp_path: Path, finished: Path, neutral: Neutral) -> None:
    pytest.importorskip("lm_eval")
    record = tmp_path / "tasks.json"
    before = json.loads((finished / "record.json").read_text())
    options = ("--tasks", "clams-fr, clams-de", "--limit", 5)
    code, printed = neutral("evaluate", finished, *options, "--output", record)
    assert code == 0, printed
    for part in ("clams-fr", "beyond", "bits per byte"):
        assert part in printed
    code, printed = neutral("evaluate", finished, *options, "--into-record")
    assert code == 0, printed
    assert "clams-fr" in printed
    assert "bits per byte" not in printed  # the record has them
    assert_one_line(
        neutral("evaluate", finished, *options, "--into-record", "--kl"), "--kl has no effect"
    )
    both = [json.loads(path.read_text()) for path in (record, finished / "record.json")]
    assert [[task["name"] for task in one["tasks"]] for one in both] == 2 * [
        ["clams-fr", "clams-de"]
    ]
    assert both[1] == before | {name: both[1][name] for name in ("tasks", "digest")}
    code, printed = neutral("report", finished)
    assert code == 0, printed
    assert "clams-de" in (finished / "report" / "summary.md").read_text()
    # An extension without its run has no sets, and needs none.
    shutil.copytree(finished / "extension", tmp_path / "alone")
    code, printed = neutral("evaluate", tmp_path / "alone", "--tasks", "clams-fr", "--limit", 2)
    assert code == 0, printed
    assert (tmp_path / "alone" / "tasks" / "clams-fr.json").is_file()


def test_tasks_of_a_folder(tmp_path: Path, finished: Path, neutral: Neutral) -> None:
    pytest.importorskip("lm_eval")
    items = [{"query": f"{n}", "choices": ["one", "ten", "two"], "gold": n % 3} for n in range(6)]
    file = tmp_path / "mine_fr.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    options = ("--task-data", tmp_path, "--num-fewshot", 2, "--into-record")
    for _ in range(2):  # measured once, and once in the record
        code, printed = neutral("evaluate", finished, *options)
        assert code == 0, printed
        for part in ("mine_fr", "acc_norm", "few-shot", "chance", "33.33", "holds 1 tasks"):
            assert part in printed
        scores = json.loads((finished / "record.json").read_text())["tasks"]
        assert [score["metric"] for score in scores] == ["acc_norm", "acc"]
        assert {score["role"] for score in scores} == {"target"}


def test_bad_tasks(tmp_path: Path, finished: Path, neutral: Neutral) -> None:
    pytest.importorskip("lm_eval")
    values = run_values(tmp_path) | {"output": str(tmp_path / "other")}
    for task, parts in {
        "minimal-pairs-hu": ["no minimal pairs in that language", "de, en, fr"],
        "cloze-fr": ["no items in cloze-fr"],
        "belebele_fra_Latn": ["data of task belebele_fra_Latn are not on this machine"],
    }.items():  # before a training is lost on it
        run = write_run(tmp_path, changed(values, "evaluation.tasks", [task]), "other.yaml")
        assert_one_line(neutral("extend", run), *parts)
        assert not (tmp_path / "other").exists()
    (tmp_path / "empty.fr.jsonl").write_text("")
    for options, parts in {
        ("--tasks", "cloze-frr"): ["unknown evaluation set in cloze-frr", "did you mean 'fr'"],
        ("--tasks", "cloze"): [
            "no items in cloze-fr",
            "name other tasks",
        ],  # words without a full stop
        ("--tasks", "empty-fr", "--task-data", tmp_path): ["too few items in", "empty.fr.jsonl"],
        ("--tasks", "quick", "--task-data", tmp_path / "none"): ["task_data is not a folder"],
        ("--tasks", "file:none_fr.jsonl"): ["no such file: none_fr.jsonl"],
        ("--task-data", tmp_path, "--num-fewshot", -1): ["--num-fewshot", "0 or more"],
        ("--limit", 3): ["--limit goes with --tasks"],
        ("--num-fewshot", 3): ["--num-fewshot goes with --tasks"],
        ("--tasks", "quick", "--limit", 1): ["--limit", "2 or more"],
    }.items():
        assert_one_line(neutral("evaluate", finished, *options), *parts)
    assert_one_line(
        neutral("evaluate", finished / "extension", "--tasks", "quick", "--into-record"),
        "record.json",
    )
    assert_one_line(
        neutral("evaluate", finished / "extension", "--tasks", "cloze"), "there are none", "--set"
    )


def test_bad_saved_folders(tmp_path: Path, finished: Path, neutral: Neutral) -> None:
    assert_one_line(neutral("evaluate", tmp_path / "none"), "no such folder")
    (tmp_path / "empty").mkdir()
    assert_one_line(neutral("generate", tmp_path / "empty", "x"), "is not an extension")
    assert_one_line(neutral("evaluate", finished, "--set", "wiki.jsonl"), "role:name=file")
    assert_one_line(neutral("generate", finished, ""), "prompt")

    weights = finished / "extension" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert_one_line(neutral("evaluate", finished), "adapter_model.safetensors", "damaged")
    weights.write_bytes(whole)
    (finished / "extension" / DIGESTS).unlink()

    config = finished / "extension" / "adapter_config.json"
    values = json.loads(config.read_text())
    make_backbone(tmp_path / "deeper", num_hidden_layers=3)
    config.write_text(json.dumps(values | {"base_model_name_or_path": str(tmp_path / "deeper")}))
    assert_one_line(
        neutral("evaluate", finished / "extension"), "another backbone", "num_hidden_layers"
    )

    shutil.rmtree(finished / "extension")
    assert_one_line(neutral("evaluate", finished), "has no extension yet")
