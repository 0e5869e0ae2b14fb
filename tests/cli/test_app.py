"""The command line as a person meets it: instant help, and one line with exit code 2 for each kind
of bad input."""

import errno
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from neutral_residues.cli import app as cli
from tiny_run import SOURCE_WORDS, make_backbone, make_text, run_values, write_run


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def neutral(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the command line in this process: exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["neutral", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out + err

    return run


def assert_one_line(result: tuple[int, str], *parts: str) -> None:
    code, printed = result
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 2, printed
    assert "Traceback" not in printed
    assert len(lines) == 1, printed
    for part in parts:
        assert part in lines[0], lines[0]


def test_help_is_instant() -> None:
    seconds = []
    for _ in range(3):
        start = time.process_time_ns(), time.monotonic()
        children = os.times()
        subprocess.run(
            [sys.executable, "-m", "neutral_residues.cli.app", "--help"],
            check=True,
            capture_output=True,
        )
        after = os.times()
        seconds.append(
            after.children_user
            + after.children_system
            - children.children_user
            - children.children_system
        )
        assert start
    # Processor time, not wall time: other work on the machine must not fail this.
    assert min(seconds) < 0.5


def test_the_light_path_never_imports_torch() -> None:
    code = "import sys; sys.argv = ['neutral', '--help']\n"
    code += (
        "from neutral_residues.cli.app import main\ntry: main()\nexcept SystemExit: pass\nassert"
        " 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def changed(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The run with one setting (dotted; list positions as numbers) changed."""
    values = json.loads(json.dumps(values))
    place: Any = values
    *parents, last = key.split(".")
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("modle", "x", ["unknown key modle", "did you mean 'model'"]),
        ("training.stesp", 3, ["unknown key training.stesp", "did you mean 'steps'"]),
        ("data.train.0.pth", "x", ["unknown key data.train.0.pth", "did you mean 'path'"]),
        ("training.steps", "many", ["training.steps", "integer", "'many'"]),
        ("data.source_share", 1.5, ["data.source_share", "1.5"]),
        ("data.train.0.role", "targt", ["data.train.0.role", "'source' or 'target'", "'targt'"]),
        ("data.train.0.path", "no/such.jsonl", ["no/such.jsonl"]),
        ("method", "neutrl", ["unknown method neutrl", "did you mean 'neutral'"]),
        ("budget", 0, ["budget", "greater than 0"]),
        ("budget", 1e-6, ["budget", "nearest"]),
        ("model", "no-such-model", ["no-such-model"]),
        ("data.block_tokens", 65, ["data.block_tokens", "65", "64"]),
        ("data.block_tokens", 1, ["data.block_tokens"]),
        ("training.report_to", ["nonsense"], ["nonsense"]),
        ("residues", {"layers_to_transform": [7]}, ["layers_to_transform", "0 to 1"]),
        ("residues", {"activation": "siluu"}, ["activation", "siluu"]),
    ],
)
def test_bad_settings(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]], key: str, value: Any, parts: list[str]
) -> None:
    values = run_values(tmp_path)
    assert_one_line(neutral("extend", write_run(tmp_path, changed(values, key, value))), *parts)
    assert not (tmp_path / "run").exists()


def _not_utf8(path: Path) -> None:
    path.write_bytes('{"text": "déjà"}\n'.encode("latin-1") * 30)


def _broken_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"text": "some words"}\n' * 999)[:-40])


def _no_field(path: Path) -> None:
    path.write_text('{"text": "fine"}\n{"body": "not here"}\n')


def _no_json(path: Path) -> None:
    path.write_text('{"text": "fine"}\n{"text": \n')


@pytest.mark.parametrize(
    ("name", "spoil", "parts"),
    [
        ("bad.jsonl", lambda p: p.write_text(""), ["bad.jsonl", "empty"]),
        ("bad.jsonl", _not_utf8, ["bad.jsonl", "UTF-8"]),
        ("bad.jsonl.gz", _broken_gzip, ["bad.jsonl.gz"]),
        ("bad.jsonl", _no_field, ["bad.jsonl", "line 2", "text", "body"]),
        ("bad.jsonl", _no_json, ["bad.jsonl", "line 2"]),
        (
            "bad.jsonl",
            lambda p: p.write_text("".join(f'{{"text": "{n}"}}\n' for n in range(14))),
            ["fr", "32"],
        ),
        ("bad.docx", lambda p: p.write_text("x"), ["bad.docx", ".jsonl"]),
        ("bad.jsonl", lambda p: p.mkdir(), ["bad.jsonl"]),
    ],
    ids=["empty", "encoding", "gzip", "field", "json", "too-small", "suffix", "folder"],
)
def test_bad_text(
    tmp_path: Path,
    neutral: Callable[..., tuple[int, str]],
    name: str,
    spoil: Callable[[Path], object],
    parts: list[str],
) -> None:
    values = run_values(tmp_path)
    spoil(tmp_path / name)
    run = write_run(tmp_path, changed(values, "data.train.0.path", str(tmp_path / name)))
    assert_one_line(neutral("extend", run), *parts)
    assert not (tmp_path / "run").exists()


def test_target_and_source_are_the_same_file(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    values = run_values(tmp_path)
    run = write_run(tmp_path, changed(values, "data.train.0.path", str(tmp_path / "en.jsonl")))
    assert_one_line(neutral("extend", run), "en.jsonl", "same")


def test_tokenizer_without_end_of_text(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    values = run_values(tmp_path)
    make_backbone(tmp_path / "mute", eos_token=None)
    run = write_run(tmp_path, changed(values, "model", str(tmp_path / "mute")))
    assert_one_line(neutral("extend", run), "end-of-text")
    assert not (tmp_path / "run").exists()


def test_backbone_that_is_not_causal(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    values = run_values(tmp_path)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertForMaskedLM(BertConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "bert")
    run = write_run(tmp_path, changed(values, "model", str(tmp_path / "bert")))
    assert_one_line(neutral("extend", run), "not a causal language model", "BertForMaskedLM")


def test_folder_that_is_no_model(tmp_path: Path, neutral: Callable[..., tuple[int, str]]) -> None:
    values = run_values(tmp_path)
    (tmp_path / "nothing").mkdir()
    run = write_run(tmp_path, changed(values, "model", str(tmp_path / "nothing")))
    assert_one_line(neutral("extend", run), "nothing is not a model folder", "config.json")


def test_weights_cut_short(tmp_path: Path, neutral: Callable[..., tuple[int, str]]) -> None:
    values = run_values(tmp_path)
    file = tmp_path / "backbone" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert_one_line(neutral("extend", write_run(tmp_path, values)), "cannot load the weights")


def test_output_folder_of_another_run(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    values = run_values(tmp_path, steps=1)
    assert neutral("extend", write_run(tmp_path, values))[0] == 0
    other = write_run(tmp_path, changed(values, "training.steps", 2), "other.yaml")
    assert_one_line(neutral("extend", other), "another run", "training.steps was 1", "got 2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    foreign = write_run(tmp_path, changed(values, "output", str(tmp_path / "full")), "foreign.yaml")
    assert_one_line(neutral("extend", foreign), "not empty", "thesis.txt")
    assert os.listdir(tmp_path / "full") == ["thesis.txt"]


def test_no_permission(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Simulated: tests may run as root, who may write anywhere.
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    run = write_run(tmp_path, run_values(tmp_path))
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_one_line(neutral("extend", run), "no permission for")


def test_no_space_left_keeps_the_last_checkpoint(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    real, saves = safetensors.torch.save_file, iter(range(100))

    def full_disk(tensors: Any, filename: Any, *args: Any, **kwargs: Any) -> None:
        if next(saves) >= 1:
            Path(filename).write_bytes(b"begun")
            raise OSError(errno.ENOSPC, "No space left on device", str(filename))
        real(tensors, filename, *args, **kwargs)

    run = write_run(tmp_path, run_values(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr("peft.peft_model.safe_save_file", full_disk)
        assert_one_line(neutral("extend", run), "no space left")
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "complete.json").is_file()
    assert neutral("extend", run)[0] == 0


def test_run_file_itself(tmp_path: Path, neutral: Callable[..., tuple[int, str]]) -> None:
    assert_one_line(neutral("extend", tmp_path / "none.yaml"), "no such file")
    (tmp_path / "bad.yaml").write_text("model: [1,\n")
    assert_one_line(neutral("extend", tmp_path / "bad.yaml"), "not YAML", "line")
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert_one_line(neutral("extend", tmp_path / "list.yaml"), "mapping")
    (tmp_path / "latin.yaml").write_bytes("model: déjà\n".encode("latin-1"))
    assert_one_line(neutral("extend", tmp_path / "latin.yaml"), "UTF-8")
    run = write_run(tmp_path, run_values(tmp_path))
    assert_one_line(neutral("extend", run, "training.steps"), "key=value")
    assert_one_line(neutral("extend", run, "training.steps=x"), "training.steps")


@pytest.fixture
def finished(tmp_path: Path, neutral: Callable[..., tuple[int, str]]) -> Path:
    code, printed = neutral(
        "extend", write_run(tmp_path, run_values(tmp_path, steps=3, learning_rate=0.02))
    )
    assert code == 0, printed
    return tmp_path / "run"


def test_evaluate_describe_generate(
    tmp_path: Path, finished: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
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
    code, printed = neutral("generate", finished, "le chat", "--max-new-tokens", 5)
    assert code == 0, printed
    assert "backbone" in printed
    code, printed = neutral("describe", tmp_path / "run.yaml")
    assert code == 0, printed
    assert "new weights" in printed
    code, printed = neutral(
        "advise", tmp_path / "run.yaml", "--trial-steps", 0, "--output", tmp_path / "advice.json"
    )
    assert code == 0, printed
    assert json.loads((tmp_path / "advice.json").read_text())["texts"]
    assert_one_line(neutral("advise", tmp_path / "run.yaml", "modle=x"), "did you mean 'model'")


def test_tasks(tmp_path: Path, finished: Path, neutral: Callable[..., tuple[int, str]]) -> None:
    pytest.importorskip("lm_eval")
    record = tmp_path / "tasks.json"
    options = ("--tasks", "clams-fr, clams-de", "--limit", 5)
    code, printed = neutral("evaluate", finished, *options, "--output", record, "--into-record")
    assert code == 0, printed
    for part in ("clams-fr", "beyond", "bits per byte"):
        assert part in printed
    both = [json.loads(path.read_text()) for path in (record, finished / "record.json")]
    assert [[task["name"] for task in one["tasks"]] for one in both] == 2 * [
        ["clams-fr", "clams-de"]
    ]
    assert both[1]["kind"] == "extend"
    code, printed = neutral("report", finished)
    assert code == 0, printed
    assert "clams-de" in (finished / "report" / "summary.md").read_text()
    # An extension without its run has no sets, and needs none.
    shutil.copytree(finished / "extension", tmp_path / "alone")
    code, printed = neutral("evaluate", tmp_path / "alone", "--tasks", "clams-fr", "--limit", 2)
    assert code == 0, printed
    assert (tmp_path / "alone" / "tasks" / "clams-fr.json").is_file()


def test_bad_tasks(tmp_path: Path, finished: Path, neutral: Callable[..., tuple[int, str]]) -> None:
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
        ("--tasks", "empty-fr", "--task-data", tmp_path): ["no items in", "empty.fr.jsonl"],
        ("--tasks", "quick", "--task-data", tmp_path / "none"): ["task_data is not a folder"],
        ("--limit", 3): ["--limit goes with --tasks"],
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


def test_bad_saved_folders(
    tmp_path: Path, finished: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    assert_one_line(neutral("evaluate", tmp_path / "none"), "no such folder")
    (tmp_path / "empty").mkdir()
    assert_one_line(neutral("generate", tmp_path / "empty", "x"), "is not an extension")
    assert_one_line(neutral("evaluate", finished, "--set", "wiki.jsonl"), "role:name=file")
    assert_one_line(neutral("generate", finished, ""), "prompt")

    weights = finished / "extension" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert_one_line(neutral("evaluate", finished), "weights in", "damaged")
    weights.write_bytes(whole)

    config = finished / "extension" / "adapter_config.json"
    values = json.loads(config.read_text())
    make_backbone(tmp_path / "deeper", num_hidden_layers=3)
    config.write_text(json.dumps(values | {"base_model_name_or_path": str(tmp_path / "deeper")}))
    assert_one_line(
        neutral("evaluate", finished / "extension"), "another backbone", "num_hidden_layers"
    )

    shutil.rmtree(finished / "extension")
    assert_one_line(neutral("evaluate", finished), "has no extension yet")


def test_a_comparison_and_its_report(
    tmp_path: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    write_run(tmp_path, run_values(tmp_path, steps=2), "tiny.yaml")
    values = {
        "runs": [str(tmp_path / "tiny.yaml")],
        "output": str(tmp_path / "out"),
        "methods": ["finetune"],
    }
    file = write_run(tmp_path, values, "compare.yaml")
    code, printed = neutral("compare", file, "--plan")
    assert code == 0, printed
    assert "1 cells, 0 done" in printed
    assert_one_line(neutral("report", tmp_path / "out"), "no such file or folder")
    code, printed = neutral("compare", file)
    assert code == 0, printed
    assert "1 cells done, 0 failed" in printed
    code, printed = neutral("report", tmp_path / "out")
    assert code == 0, printed
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    # What another text gives does not stand in one column with it, and half a record is none.
    record = tmp_path / "out" / "cells" / "tiny" / "finetune" / "lr0.006-p0.25-s0" / "record.json"
    other = json.loads(record.read_text())
    other["config"]["seed"] = 1
    other["sets"]["fr"]["key"] = "another text"
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert_one_line(
        neutral("report", record, tmp_path / "other.json"), "do not compare", "report them apart"
    )
    (tmp_path / "half.json").write_text(record.read_text()[:1000])
    assert_one_line(neutral("report", tmp_path / "half.json"), "not whole JSON")
    (tmp_path / "newer.json").write_text(json.dumps(other | {"version": 99}))
    assert_one_line(
        neutral("report", tmp_path / "newer.json"), "version; got 99; allowed: 1", "read it with"
    )


def test_bad_comparisons(tmp_path: Path, neutral: Callable[..., tuple[int, str]]) -> None:
    run = write_run(tmp_path, run_values(tmp_path), "tiny.yaml")
    values = {"runs": [str(run)], "output": str(tmp_path / "out"), "methods": ["neutral"]}
    file = write_run(tmp_path, values, "compare.yaml")
    assert_one_line(neutral("compare", tmp_path / "none.yaml"), "no such file")
    assert_one_line(
        neutral("compare", file, "methods=[neutrall]"),
        "unknown method neutrall",
        "did you mean 'neutral'",
    )
    assert_one_line(
        neutral("compare", file, "metods=[neutral]"), "unknown key metods", "did you mean 'methods'"
    )
    assert_one_line(neutral("compare", file, "set.training.steps=x"), "training.steps")
    assert_one_line(
        neutral("compare", file, "set.model=/nowhere"), "cannot load the model /nowhere"
    )
    assert not (tmp_path / "out").exists()
    # A budget that nothing meets is the failure of its cell, not of the comparison.
    code, printed = neutral("compare", file, 'methods=["lora"]')
    assert code == 1
    assert "0 cells done, 1 failed" in printed
    assert "the nearest is 0.20429 (rank 7)" in printed


def test_the_methods_are_listed(neutral: Callable[..., tuple[int, str]]) -> None:
    code, printed = neutral("methods")
    assert code == 0
    for name in ("neutral-classifier", "block-expansion", "wise-ft"):
        assert name in printed
