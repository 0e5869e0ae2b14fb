"""Both models get the scores that lm-eval gives to each alone; the prompts are the same."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import get_peft_model
from torch import nn

pytest.importorskip("lm_eval")

import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge
from neutral_residues import NeutralResiduesConfig
from neutral_residues.backbone import load_backbone, load_tokenizer
from neutral_residues.errors import UserError
from neutral_residues.evaluation.inference import as_backbone
from neutral_residues.evaluation.tasks import runner
from neutral_residues.evaluation.tasks.local_task import LocalTask
from neutral_residues.evaluation.tasks.registry import Task
from neutral_residues.evaluation.tasks.task_files import SHIPPED, file_task, task_files
from neutral_residues.tuner.embeddings import embeddings_layer
from tiny_run import END_OF_TEXT, make_backbone
from tiny_tasks import LIMIT, Measured


def shipped(name: str) -> LocalTask:
    return file_task(task_files(SHIPPED)[name], name)


def likelihood(model: nn.Module, ids: list[int]) -> float:
    """Of all tokens of a text, the first included, after the token that starts a text; in nats."""
    tokens = torch.tensor([[END_OF_TEXT, *ids]])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1]
    return float(torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None]).sum())


def test_whole_sentences_are_scored_by_both_models(measured: Measured) -> None:
    (score,) = measured.scores("clams-de")
    pairs, kept = shipped("clams-de").items[:LIMIT], measured.samples("clams-de")
    model = measured.model.eval()
    right: dict[str, list[bool]] = {"extended": [], "backbone": []}
    for pair, line in zip(pairs, kept, strict=True):
        assert line["item"]["uid"] == pair["uid"]
        bad, good = (measured.tokenizer(pair[key])["input_ids"] for key in ("bad", "good"))
        by_hand = {"extended": [likelihood(model, bad), likelihood(model, good)]}
        with as_backbone(model) as backbone:
            by_hand["backbone"] = [likelihood(backbone, bad), likelihood(backbone, good)]
        assert by_hand["extended"] != by_hand["backbone"]
        for name, expected in by_hand.items():
            answers = [answer[0] for answer in line[name]["answers"]]
            assert answers == pytest.approx(expected, rel=1e-4)
            right[name].append(expected[1] > expected[0])
    assert score.backbone == pytest.approx(np.mean(right["backbone"]))
    assert score.extended == pytest.approx(np.mean(right["extended"]))
    assert (score.num_items, score.unit, score.metric) == (LIMIT, "share", "acc")
    assert score.num_truncated == 0


def test_both_models_get_what_two_runs_of_lm_eval_give(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = measured.model.train()
    (score,) = measured.scores("blimp-en", limit=40)
    assert all(module.training for module in model.modules())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    lm = HFLM(pretrained=model, tokenizer=measured.tokenizer, batch_size=4)

    # It would ask the machine for all its packages, twice.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)

    def alone() -> float:
        tasks = list(bridge.load_local(shipped("blimp-en")).values())
        return simple_evaluate(
            model=lm, tasks=tasks, limit=40, bootstrap_iters=0, task_manager=bridge.task_manager()
        )["results"]["blimp-en"]["acc,none"]

    assert score.extended == alone()
    with as_backbone(model):
        assert score.backbone == alone()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


def test_the_backbone_is_not_asked_again_where_every_gate_is_shut(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = embeddings_layer(measured.model)
    assert layer is not None
    reader = layer.reader("default")
    assert reader is not None
    rows: list[int] = []
    monkeypatch.setattr(
        bridge.HFLM,
        "_model_call",
        lambda lm, inps, *args, ask=bridge.HFLM._model_call, **kwargs: (
            rows.append(len(inps)) or ask(lm, inps, *args, **kwargs)
        ),
    )

    def asked(model_key: str) -> int:
        rows.clear()
        scores.append(measured.scores("clams-fr", model_key=model_key)[0])
        lines.append(measured.samples("clams-fr"))
        return sum(rows)

    scores: list[Any] = []
    lines: list[Any] = []
    texts = [pair[key] for pair in shipped("clams-fr").items[:LIMIT] for key in ("good", "bad")]
    with torch.no_grad():
        highest = []
        for text in texts:
            layer(torch.tensor([[END_OF_TEXT, *measured.tokenizer(text)["input_ids"][:-1]]]))
            highest.append(layer.gates["default"].logits.max())
        reader.block_gate.bias -= torch.stack(highest).median()  # shut over every second text
    shared = asked("half shut")
    with monkeypatch.context() as patch:
        patch.setattr(
            bridge, "untouched_rows", lambda _, rows: torch.zeros(len(rows), dtype=torch.bool)
        )
        assert asked("half shut, but all asked") == 2 * len(texts) > shared > len(texts)
    assert scores[0] == scores[1]
    assert lines[0] == lines[1]
    with torch.no_grad():
        reader.block_gate.bias -= 1e3
    assert asked("all shut") == len(texts)
    assert (scores[-1].difference, scores[-1].p_value) == (0, 1)


def test_a_reference_is_the_backbone_where_one_is_given(measured: Measured) -> None:
    plain = measured.load_backbone()
    (switched_off,) = measured.scores("clams-fr")
    (score,) = measured.scores("clams-fr", reference=plain, model_key="others")
    assert score == switched_off
    (same,) = measured.scores(
        "clams-fr", model=plain, reference=plain, model_key="the backbone itself"
    )
    assert (same.difference, same.p_value, same.backbone) == (0, 1, score.backbone)


def test_truncated_prompts_are_counted(measured: Measured) -> None:
    measured.model.config.max_position_embeddings = 50
    (score,) = measured.scores("clams-fr")
    pairs = shipped("clams-fr").items[:LIMIT]
    texts = [pair[key] for pair in pairs for key in ("good", "bad")]
    long = sum(len(text.encode()) > 50 for text in texts)
    assert 0 < score.num_truncated == long < len(texts)


def arc(path: str, **_: Any) -> DatasetDict:
    """A stand-in for a data set of the Hub."""
    docs = [
        {
            "question": f"Which is number {i}?",
            "answerKey": "ABCD"[i % 4],
            "answer": "ABCD"[i % 4],
            "choices": {"text": [f"{i} {letter}" for letter in "abcde"], "label": list("ABCDE")},
        }
        for i in range(20)
    ]
    return DatasetDict(
        {split: Dataset.from_list(docs) for split in ("train", "validation", "test")}
    )


@pytest.fixture
def _data_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", arc)


@pytest.mark.usefixtures("_data_of_the_hub")
def test_any_task_of_lm_eval(measured: Measured) -> None:
    random_state = hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest()
    score, other = measured.scores("arc_challenge")
    assert (score.metric, score.num_fewshot, score.num_items) == ("acc_norm", 0, LIMIT)
    assert (score.role, score.chance) == ("none", pytest.approx(1 / 5))
    assert (other.metric, other.num_items) == ("acc", LIMIT)
    assert hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest() == random_state


@pytest.mark.usefixtures("_data_of_the_hub")
def test_examples_are_drawn_alike_each_time(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find_tasks", lambda *_, **__: ([five_shot], []))
    monkeypatch.setattr(runner, "LETTER_ANSWERS", ())
    five_shot = Task("commonsense_qa", num_fewshot=5)
    one, two = (measured.scores("commonsense_qa", model_key=key)[0] for key in ("one", "two"))
    assert one == two
    assert one.num_fewshot == 5
    assert one.num_truncated > 0  # five examples in bytes do not fit 256
    # The Norwegian one has test questions only.
    five_shot = Task("norcommonsenseqa_nob_p0", num_fewshot=5)
    assert measured.scores("norcommonsenseqa_nob_p0")[0].num_fewshot == 0


@pytest.mark.usefixtures("_data_of_the_hub")
def test_the_user_says_how_many_examples(measured: Measured) -> None:
    assert measured.scores("arc_challenge", num_fewshot=2)[0].num_fewshot == 2
    # Its test items are all that it has, and it does not say that these are examples.
    assert measured.scores("norcommonsenseqa_nob_p0", num_fewshot=2)[0].num_fewshot == 0
    assert measured.scores("clams-fr", num_fewshot=2)[0].num_fewshot == 0


def test_weights_that_an_adapter_on_the_head_shares_are_not_tied_again(tmp_path: Path) -> None:
    backbone = str(make_backbone(tmp_path, tie_word_embeddings=True))
    config = NeutralResiduesConfig(budget=0.3, head_rank=1)
    model = get_peft_model(load_backbone(backbone, dtype=torch.float32), config)
    tied = model.get_input_embeddings().weight
    bridge.PairedHFLM(model, load_tokenizer(backbone), batch_rows=2, on_rows=lambda rows: None)
    assert model.get_input_embeddings().weight is tied is model.get_output_embeddings().weight
    assert "tie_weights" not in vars(model)


@pytest.mark.usefixtures("_data_of_the_hub")
def test_a_group_counts_all_items_alike(measured: Measured) -> None:
    score, _ = measured.scores("ai2_arc")
    kept = measured.samples("ai2_arc")
    assert {line["task"] for line in kept} == {"arc_challenge", "arc_easy"}
    assert score.num_items == len(kept) == 2 * LIMIT
    assert score.extended == pytest.approx(np.mean([line["extended"]["acc_norm"] for line in kept]))


@pytest.mark.usefixtures("_data_of_the_hub")
def test_a_task_that_its_author_broke_is_one_line(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lm_eval.api.task.ConfigurableTask.process_results",
        lambda *a: json.loads("this needs another package"),
    )
    with pytest.raises(UserError, match="task arc_challenge failed inside lm-eval") as caught:
        measured.scores("arc_challenge")
    assert "\n" not in str(caught.value)
