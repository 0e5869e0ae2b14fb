"""Each form is recognised, asked as lm-eval's own task of that kind, and checked field by field."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge
from neutral_residues.backbone import load_backbone, load_tokenizer
from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.item_forms import MINIMAL_PAIR, form_of
from neutral_residues.evaluation.tasks.runner import TaskSettings, measure_tasks, plan_tasks
from paths import DEMO_BACKBONE
from tiny_run import SOURCE_WORDS

Fields = dict[str, Any]
ITEMS: dict[str, Fields] = {
    "multiple choice": {"query": "Two and two are", "choices": ["four", "five"], "gold": 0},
    "whole texts": {"query": "", "choices": ["It rains.", "It rain."], "gold": 0},
    "partial": {"context_options": ["Ann", "Bob"], "continuation": "came.", "gold": 1},
    "cloze": {"context": "Two and two are", "continuation": "four"},
    "minimal pair": {"good": "Il dort.", "bad": "Il dorment.", "uid": "agreement"},
}


def test_a_form_is_known_by_its_fields() -> None:
    for title, item in ITEMS.items():
        form = form_of(item)
        assert form is not None
        assert form.title.startswith(title)
        form.check(item, "line 1")
    # WinoGrande has both ways of asking; lm-eval's is partial.
    assert form_of(ITEMS["whole texts"] | ITEMS["partial"]) is form_of(ITEMS["partial"])
    assert form_of({"text": "It rains."}) is None


def test_a_model_that_cannot_tell_is_not_right() -> None:
    # lm-eval takes the first of equals.
    asked = MINIMAL_PAIR.asked
    right = asked["doc_to_choice"](ITEMS["minimal pair"])[asked["doc_to_target"]]
    assert right == "Il dort."
    assert asked["doc_to_target"] != 0


@pytest.mark.parametrize(
    ("title", "change", "message"),
    [
        ("multiple choice", {"query": 3}, "query; got 3; allowed: a text"),
        ("multiple choice", {"choices": "ab"}, "choices; got 'ab'; allowed: a list of two"),
        ("multiple choice", {"choices": ["four"]}, "choices; got .*two texts or more"),
        ("multiple choice", {"choices": ["four", " "]}, "choices; got"),
        ("multiple choice", {"gold": 2}, "gold; got 2; allowed: 0 to 1"),
        ("multiple choice", {"gold": -1}, "gold; got -1"),
        ("multiple choice", {"gold": True}, "gold; got True"),
        ("multiple choice", {"gold": "0"}, "gold; got '0'"),
        ("whole texts", {"gold": 2}, "gold; got 2"),
        ("partial", {"gold": 2}, r"gold; .*\(context_options count from 0\)"),
        ("partial", {"continuation": None}, "continuation; got None"),
        ("cloze", {"continuation": " "}, "continuation; got ' '"),
        ("minimal pair", {"bad": ""}, "bad; got ''"),
    ],
)
def test_bad_fields(title: str, change: Fields, message: str) -> None:
    item = ITEMS[title] | change
    form = form_of(item)
    assert form is not None
    with pytest.raises(UserError, match=f"line 3 has a wrong {message}") as caught:
        form.check(item, "line 3")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("title", ITEMS)
def test_missing_fields(title: str) -> None:
    form = form_of(ITEMS[title])
    assert form is not None
    for field in form.fields:
        item = {key: value for key, value in ITEMS[title].items() if key != field}
        with pytest.raises(UserError, match=f"line 3 has no {field}; allowed: {form.title}: "):
            form.check(item, "line 3")


Document = dict[str, Any]
"""An item as lm-eval's data sets have it."""
DRAW = random.Random(0)


def words(number: int) -> str:
    return " ".join(DRAW.choices(SOURCE_WORDS, k=number))


def hellaswag() -> tuple[Document, Fields]:
    start, rest, gold = words(4), words(3), DRAW.randrange(4)
    endings = [words(5) for _ in range(4)]
    document = {"activity_label": "Fishing", "ctx_a": f"{start}.", "ctx_b": rest}
    document |= {"endings": [f"{ending} [step]" for ending in endings], "label": str(gold)}
    query = f"Fishing: {start}. {rest.capitalize()}"
    return document, {"query": query, "choices": [f"{e} " for e in endings], "gold": gold}


def arc_easy() -> tuple[Document, Fields]:
    question, gold = words(6), DRAW.randrange(3)
    choices = [words(DRAW.randrange(1, 5)) for _ in range(3)]
    answers = {"text": choices, "label": ["A", "B", "C"]}
    document = {"question": question, "choices": answers, "answerKey": "ABC"[gold]}
    query = f"Question: {question}\nAnswer:"
    return document, {"query": query, "choices": choices, "gold": gold}


def piqa() -> tuple[Document, Fields]:
    goal, choices, gold = words(6), [words(8), words(5)], DRAW.randrange(2)
    document = {"goal": goal, "sol1": choices[0], "sol2": choices[1], "label": gold}
    return document, {"query": f"Question: {goal}\nAnswer:", "choices": choices, "gold": gold}


def winogrande() -> tuple[Document, Fields]:
    start, names, end, gold = words(5), ["Ann", "the dog"], f"{words(4)}.", DRAW.randrange(2)
    document = {"sentence": f"{start} _ {end}", "option1": names[0], "option2": names[1]}
    options = [f"{start} {name}" for name in names]
    item = {"context_options": options, "continuation": end, "gold": gold}
    return document | {"answer": str(gold + 1)}, item


def lambada_openai() -> tuple[Document, Fields]:
    context, word = words(12), words(1)
    return {"text": f"{context} {word}"}, {"context": context, "continuation": word}


def paws_en() -> tuple[Document, Fields]:
    one, two, gold = words(6), words(6), DRAW.randrange(2)
    document = {"sentence1": f"{one}.", "sentence2": two.capitalize(), "label": gold}
    choices = [f"{one}, right? {answer}, {two}" for answer in ("No", "Yes")]
    return document, {"query": "", "choices": choices, "gold": gold}


def mmlu_anatomy() -> tuple[Document, Fields]:
    question, choices, gold = words(6), [words(2) for _ in range(4)], DRAW.randrange(4)
    listed = "\n".join(
        f"{letter}. {choice}" for letter, choice in zip("ABCD", choices, strict=True)
    )
    about = "The following are multiple choice questions (with answers) about anatomy."
    item = {"letter_query": f"{about}\n\n{question}\n{listed}\nAnswer:", "choices": choices}
    return {"question": question, "choices": choices, "answer": gold}, item | {"gold": gold}


def lines(file: Path, items: list[Fields]) -> str:
    file.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return str(file)


@pytest.fixture(scope="module")
def lm() -> HFLM:
    torch.set_num_threads(1)
    model = load_backbone(str(DEMO_BACKBONE), dtype=torch.float32).eval()
    return HFLM(pretrained=model, tokenizer=load_tokenizer(str(DEMO_BACKBONE)), batch_size=4)


@pytest.mark.parametrize(
    ("make", "num_fewshot"),
    [
        (hellaswag, 0), (arc_easy, 0), (piqa, 0), (winogrande, 0), (lambada_openai, 0),
        (paws_en, 0), (mmlu_anatomy, 0), (arc_easy, 3), (winogrande, 2), (lambada_openai, 2),
    ],
)  # fmt: skip
def test_scores_are_those_of_lm_evals_own_task(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lm: HFLM,
    make: Callable[[], tuple[Document, Fields]],
    num_fewshot: int,
) -> None:
    task, made = make.__name__, [make() for _ in range(12)]
    documents = lines(tmp_path / "documents.jsonl", [document for document, _ in made])
    own = {
        "include": str(bridge.task_manager().task_index[task].yaml_path), "task": task,
        "dataset_path": "json", "dataset_name": None, "training_split": None,
        "validation_split": None, "test_split": "test", "fewshot_split": "test",
        "dataset_kwargs": {"data_files": {"test": documents}, "cache_dir": str(tmp_path)},
    }  # fmt: skip
    yaml = tmp_path / f"{task}.yaml"
    yaml.write_text(json.dumps(own))
    # It would ask the machine for all its packages.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    theirs = simple_evaluate(
        model=lm,
        tasks=list(bridge.task_manager().load([str(yaml)])["tasks"].values()),
        num_fewshot=num_fewshot,
        bootstrap_iters=0,
        task_manager=bridge.task_manager(),
    )
    lines(tmp_path / "mine_en.jsonl", [item for _, item in made])
    prefix = "letters-" if task.startswith("mmlu") else ""
    plan = plan_tasks(
        [f"{prefix}file:{tmp_path / 'mine_en.jsonl'}"],
        settings=TaskSettings(batch_rows=4, context_tokens=128, num_fewshot=num_fewshot),
        tokenizer=lm.tokenizer,
        sets=[],
        folder=tmp_path / "tasks",
    )
    ours = measure_tasks(lm.model, plan, model_key="backbone", reference=lm.model)
    expected = theirs["results"][task]
    assert {score.metric for score in ours} == {
        name.partition(",")[0] for name in expected if name.endswith(",none") and "_std" not in name
    }
    for score in ours:
        assert score.backbone == score.extended == expected[f"{score.metric},none"]
        assert score.num_fewshot == num_fewshot
    (kept,) = (tmp_path / "tasks").glob("*.jsonl")
    answers = [json.loads(line)["backbone"]["answers"] for line in kept.read_text().splitlines()]
    assert answers == json.loads(json.dumps([s["filtered_resps"] for s in theirs["samples"][task]]))
