"""`neutral extend`: warnings about a new run's texts, and one line for each bad input."""

import errno
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, BertForMaskedLM

from command_line import Neutral, assert_one_line, changed
from neutral_residues.config.run import load_run
from neutral_residues.results.store import read_record
from tiny_run import SOURCE_WORDS, chat_values, make_backbone, make_text, run_values, write_run


def test_a_new_run_is_warned_of_once_and_not_changed(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path, steps=2)
    make_text(tmp_path / "en.jsonl", SOURCE_WORDS, documents=20, seed=1)
    lines = (tmp_path / "en.jsonl").read_text()
    (tmp_path / "en.jsonl").write_text(lines + lines)  # every document twice
    file = write_run(tmp_path, values)
    warning = "warning: corpus en: 50 % of its documents are copies of others"
    assert warning in " ".join(neutral("extend", file)[1].split())
    other = f"output={tmp_path / 'other'}"
    assert "warning: corpus" not in neutral("extend", file, other, "--no-advice")[1]
    one, other = (read_record(tmp_path / name / "record.json") for name in ("run", "other"))
    assert one.curve == other.curve
    (tmp_path / "run" / "record.json").unlink()  # as if it had been stopped
    assert "warning: corpus" not in neutral("extend", file)[1]


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
    tmp_path: Path, neutral: Neutral, key: str, value: Any, parts: list[str]
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
    tmp_path: Path, neutral: Neutral, name: str, spoil: Callable[[Path], object], parts: list[str]
) -> None:
    values = run_values(tmp_path)
    spoil(tmp_path / name)
    run = write_run(tmp_path, changed(values, "data.train.0.path", str(tmp_path / name)))
    assert_one_line(neutral("extend", run), *parts)
    assert not (tmp_path / "run").exists()


def test_target_and_source_are_the_same_file(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path)
    run = write_run(tmp_path, changed(values, "data.train.0.path", str(tmp_path / "en.jsonl")))
    assert_one_line(neutral("extend", run), "en.jsonl", "same")


def test_tokenizer_without_end_of_text(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path)
    make_backbone(tmp_path / "mute", eos_token=None)
    run = write_run(tmp_path, changed(values, "model", str(tmp_path / "mute")))
    assert_one_line(neutral("extend", run), "end-of-text")
    assert not (tmp_path / "run").exists()


def test_backbone_that_is_not_causal(tmp_path: Path, neutral: Neutral) -> None:
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


def test_folder_that_is_no_model(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path)
    (tmp_path / "nothing").mkdir()
    run = write_run(tmp_path, changed(values, "model", str(tmp_path / "nothing")))
    assert_one_line(neutral("extend", run), "nothing is not a model folder", "config.json")


def test_weights_cut_short(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path)
    file = tmp_path / "backbone" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    assert_one_line(neutral("extend", write_run(tmp_path, values)), "cannot load the weights")


def test_output_folder_of_another_run(tmp_path: Path, neutral: Neutral) -> None:
    values = run_values(tmp_path, steps=1)
    assert neutral("extend", write_run(tmp_path, values))[0] == 0
    other = write_run(tmp_path, changed(values, "training.steps", 2), "other.yaml")
    assert_one_line(neutral("extend", other), "another run", "training.steps was 1", "got 2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    foreign = write_run(tmp_path, changed(values, "output", str(tmp_path / "full")), "foreign.yaml")
    assert_one_line(neutral("extend", foreign), "not empty", "thesis.txt")
    assert os.listdir(tmp_path / "full") == ["thesis.txt"]


def test_no_permission(tmp_path: Path, neutral: Neutral, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated: tests may run as root, who may write anywhere.
    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    run = write_run(tmp_path, run_values(tmp_path))
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_one_line(neutral("extend", run), "no permission for")


def test_no_space_left_keeps_the_last_checkpoint(
    tmp_path: Path, neutral: Neutral, monkeypatch: pytest.MonkeyPatch
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
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3" / "SHA256SUMS").is_file()
    assert neutral("extend", run)[0] == 0


def test_chats_need_a_chat_model(tmp_path: Path, neutral: Neutral) -> None:
    values = chat_values(tmp_path)
    (tmp_path / "backbone" / "chat_template.jinja").unlink()
    result = neutral("extend", write_run(tmp_path, values))
    assert_one_line(result, "no chat template", "instruct model", "data.chat_template")
    for template, part in (("no.jinja", "no such file"), ("bad.jinja", "cannot render")):
        (tmp_path / "bad.jinja").write_text("{% for %}")
        own = changed(values, "data.chat_template", str(tmp_path / template))
        assert_one_line(neutral("extend", write_run(tmp_path, own)), part)
    assert not (tmp_path / "run").exists()


def test_starts_that_do_not_fit(tmp_path: Path, neutral: Neutral, finished: Path) -> None:
    values = run_values(tmp_path) | {"start_from": str(finished), "output": str(tmp_path / "on")}
    shutil.copytree(tmp_path / "backbone", tmp_path / "other")
    values["model"] = load_run(finished / "run.yaml").model
    for key, value, parts in (
        ("start_from", str(tmp_path / "no"), ["start_from", "finished run"]),
        ("start_from", str(tmp_path / "backbone"), ["whole model: set model to"]),
        ("model", str(tmp_path / "other"), ["extends another model", "set model to it"]),
        ("budget", 0.3, ["start_from: budget is another", "got 0.3; allowed: 0.2"]),
        ("residues", {"head_rank": 0}, ["start_from: ", "is another"]),
        ("method", "adapter", ["start_from: ", "is another"]),
        ("method", "finetune", ["this method trains the model itself"]),
    ):
        file = write_run(tmp_path, changed(values, key, value))
        assert_one_line(neutral("extend", file), *parts)
