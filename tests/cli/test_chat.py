"""Chat answers of backbone and extended model: in a run, by command, in record and report."""

import json
from pathlib import Path
from typing import Any

import pytest

from command_line import Neutral, assert_one_line
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.results.store import read_record
from one_prompt import continue_one
from tiny_run import TARGET_WORDS, byte_tokenizer, chat_values, make_chats, run_values, write_run

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}?"
PROMPTS = ["the cat", "le chat est", "a dog"]


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """A run that answers three prompts."""
    values = run_values(tmp_path, steps=4, learning_rate=0.05)
    byte_tokenizer(chat_template=TEMPLATE).save_pretrained(tmp_path / "backbone")
    lines = (json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    values["evaluation"] |= {"chat": str(tmp_path / "prompts.jsonl"), "chat_tokens": 6}
    return values


def test_a_run_answers_as_both_models_do(
    tmp_path: Path, values: dict[str, Any], neutral: Neutral
) -> None:
    code, printed = neutral("extend", write_run(tmp_path, values))
    assert code == 0, printed
    record = read_record(tmp_path / "run" / "record.json")
    saved = load_saved(tmp_path / "run")
    assert record.chat == [
        continue_one(saved.model, saved.tokenizer, f"{prompt}?", max_new_tokens=6).model_copy(
            update={"prompt": prompt}
        )
        for prompt in PROMPTS
    ]
    same = sum(sample.backbone == sample.extended for sample in record.chat)
    assert record.same_answers_share == same / 3
    assert f"{same} of 3 answers are word for word" in printed
    code, printed = neutral("report", tmp_path / "run")
    assert code == 0, printed
    assert (
        "chat answers kept word for word"
        in (tmp_path / "run" / "report" / "summary.md").read_text()
    )


def test_by_command_into_the_record(
    tmp_path: Path, values: dict[str, Any], neutral: Neutral
) -> None:
    prompts = values["evaluation"].pop("chat")
    assert neutral("extend", write_run(tmp_path, values))[0] == 0
    options = ("--chat", prompts, "--into-record")
    code, printed = neutral("evaluate", tmp_path / "run", *options)
    assert code == 0, printed
    assert "3 answers are word for word" in printed
    answers = read_record(tmp_path / "run" / "record.json").chat
    assert [sample.prompt for sample in answers] == PROMPTS
    code, printed = neutral(
        "generate", tmp_path / "run", "le chat", "--chat", "--max-new-tokens", 5
    )
    assert code == 0, printed


def test_what_cannot_be_answered_is_refused_before_training(
    tmp_path: Path, values: dict[str, Any], neutral: Neutral
) -> None:
    def refused(*parts: str) -> None:
        assert_one_line(neutral("extend", write_run(tmp_path, values)), *parts)
        assert not (tmp_path / "run").exists()

    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')
    refused("prompts.jsonl", "line 2")
    file.write_text(json.dumps({"prompt": "cat " * 40}) + "\n")
    refused("longer than the model's context")
    values["evaluation"]["chat"] = str(tmp_path / "none.jsonl")
    refused("none.jsonl")


def test_a_set_of_chats_is_told_by_its_messages(tmp_path: Path, neutral: Neutral) -> None:
    values = chat_values(tmp_path, steps=2)
    chats = make_chats(tmp_path / "test.jsonl", TARGET_WORDS, chats=5, seed=7)
    corpus = {"name": "fr", "role": "target", "path": str(chats), "chat": True}
    values["data"]["evaluate"] = [corpus]
    del values["data"]["held_out_share"]
    code, printed = neutral("extend", write_run(tmp_path, values))
    assert code == 0, printed
    output = ("--output", tmp_path / "again.json")
    code, printed = neutral("evaluate", tmp_path / "run", "--set", f"target:fr={chats}", *output)
    assert code == 0, printed
    measured, again = (read_record(tmp_path / p) for p in ("run/record.json", "again.json"))
    assert again.sets["fr"] == measured.sets["fr"]
