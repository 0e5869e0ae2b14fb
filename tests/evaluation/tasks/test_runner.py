"""Both sides on tasks: scores are lm-eval's own, finished tasks are kept, and what cannot be
measured is one line."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from peft import get_peft_model
from rich.console import Console
from torch import nn

pytest.importorskip("lm_eval")

import neutral_residues.evaluation.tasks.lm_eval_bridge as harness
from neutral_residues import NeutralResiduesConfig
from neutral_residues.backbone import load_backbone, load_tokenizer
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate import as_backbone
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.evaluation.tasks.minimal_pairs import pair_files, pairs_task, read_pairs
from neutral_residues.evaluation.tasks.runner import TaskSettings, measure_tasks, plan_tasks
from neutral_residues.results.record import TaskScore
from tiny_run import END_OF_TEXT, make_backbone

LIMIT = 12


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model(tmp_path: Path) -> nn.Module:
    """A random Llama over bytes with an extension that is not silent."""
    backbone = load_backbone(
        str(make_backbone(tmp_path / "backbone", max_position_embeddings=256)), dtype=torch.float32
    )
    extended = get_peft_model(backbone, NeutralResiduesConfig(budget=0.2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in extended.parameters():
            if parameter.requires_grad:
                parameter += 0.5 * torch.randn(parameter.shape, generator=generator)
    return extended


def measured(model: nn.Module, folder: Path, *names: str, **changes: Any) -> list[TaskScore]:
    streams: list[TokenStream] = changes.pop("streams", [])
    options = {"settings": TaskSettings(4, 128, LIMIT), "model_key": "these weights"} | changes
    tokenizer = load_tokenizer(str(folder / "backbone"))
    tasks = plan_tasks(names, sets={stream.name: stream.role for stream in streams})
    console = Console(file=io.StringIO())
    return measure_tasks(
        model,
        tokenizer,
        tasks,
        streams=streams,
        folder=folder / "tasks",
        console=console,
        **options,
    )


def lines(folder: Path, task: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "tasks" / f"{task}.jsonl").read_text("utf-8").splitlines()
    ]


def likelihood(model: nn.Module, ids: list[int]) -> float:
    """Of all tokens of a text, the first included, after the token that starts a text; in nats."""
    tokens = torch.tensor([[END_OF_TEXT, *ids]])
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[0, :-1]
    return float(torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None]).sum())


def test_whole_sentences_are_scored_on_both_sides(tmp_path: Path, model: nn.Module) -> None:
    (score,) = measured(model, tmp_path, "clams-de")
    pairs, kept = read_pairs(pair_files()["clams-de"])[:LIMIT], lines(tmp_path, "clams-de")
    tokenizer = load_tokenizer(str(tmp_path / "backbone"))
    model.eval()
    right: dict[str, list[bool]] = {"extended": [], "backbone": []}
    for pair, line in zip(pairs, kept, strict=True):
        assert line["item"]["uid"] == pair["uid"]
        for side in right:
            by_hand = []
            for text in (pair["bad"], pair["good"]):
                ids = tokenizer(text)["input_ids"]
                if side == "extended":
                    by_hand.append(likelihood(model, ids))
                else:
                    with as_backbone(model) as backbone:
                        by_hand.append(likelihood(backbone, ids))
            answers = [answer[0] for answer in line[side]["answers"]]
            assert answers == pytest.approx(by_hand, rel=1e-4)
            right[side].append(by_hand[1] > by_hand[0])
    assert score.backbone == pytest.approx(np.mean(right["backbone"]))
    assert score.extended == pytest.approx(np.mean(right["extended"]))
    assert (score.num_items, score.unit, score.metric, score.num_truncated) == (
        LIMIT,
        "share",
        "acc",
        0,
    )
    assert (
        lines(tmp_path, "clams-de")[0]["backbone"]["answers"]
        != lines(tmp_path, "clams-de")[0]["extended"]["answers"]
    )


def test_both_sides_are_what_two_runs_of_lm_eval_give(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    (score,) = measured(model, tmp_path, "blimp-en", settings=TaskSettings(4, 128, 40))
    pairs = read_pairs(pair_files()["blimp-en"])
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    lm = HFLM(pretrained=model, tokenizer=load_tokenizer(str(tmp_path / "backbone")), batch_size=4)

    # It would ask the machine for all its packages, twice.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)

    def plain() -> float:
        tasks = list(harness.load_own(pairs_task("blimp-en"), pairs).values())
        return simple_evaluate(
            model=lm, tasks=tasks, limit=40, bootstrap_iters=0, task_manager=harness.task_manager()
        )["results"]["blimp-en"]["acc,none"]

    assert score.extended == plain()
    with as_backbone(model):
        assert score.backbone == plain()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


def test_a_reference_is_the_backbone_where_one_is_given(tmp_path: Path, model: nn.Module) -> None:
    plain = load_backbone(str(tmp_path / "backbone"), dtype=torch.float32)
    (switched_off,) = measured(model, tmp_path, "clams-fr")
    (score,) = measured(model, tmp_path, "clams-fr", reference=plain, model_key="others")
    assert score == switched_off
    (same,) = measured(
        plain, tmp_path, "clams-fr", reference=plain, model_key="the backbone itself"
    )
    assert (same.difference, same.p_value, same.backbone) == (0, 1, score.backbone)


@pytest.fixture
def no_measuring(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """After `forbid`, whoever measures fails."""
    with monkeypatch.context() as patch:
        yield patch


def forbid(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(harness, "answer_both", lambda *a, **k: pytest.fail("measured again"))


def test_a_finished_task_is_kept(
    tmp_path: Path, model: nn.Module, no_measuring: pytest.MonkeyPatch
) -> None:
    real, calls = harness.answer_both, []

    def stopped_in_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(list(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    no_measuring.setattr(harness, "answer_both", stopped_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        measured(model, tmp_path, "clams-fr", "clams-de")
    assert sorted(path.name for path in (tmp_path / "tasks").iterdir()) == [
        "clams-fr.json",
        "clams-fr.jsonl",
    ]
    both = measured(model, tmp_path, "clams-fr", "clams-de")
    assert calls == [["clams-fr"], ["clams-de"], ["clams-de"]]
    forbid(no_measuring)
    assert measured(model, tmp_path, "clams-fr", "clams-de") == both


@pytest.mark.parametrize("what", ["weights", "limit", "samples", "summary"])
def test_it_is_measured_again_where_anything_is_other(
    tmp_path: Path, model: nn.Module, no_measuring: pytest.MonkeyPatch, what: str
) -> None:
    measured(model, tmp_path, "clams-fr")
    changes: dict[str, Any] = {}
    samples, summary = (tmp_path / "tasks" / f"clams-fr.{kind}" for kind in ("jsonl", "json"))
    if what == "weights":
        changes["model_key"] = "other weights"
    elif what == "limit":
        changes["settings"] = TaskSettings(4, 128, LIMIT + 1)
    elif what == "samples":
        samples.write_text(samples.read_text()[:-50])
    else:
        summary.write_text(summary.read_text()[:-50])
    forbid(no_measuring)
    with pytest.raises(pytest.fail.Exception):
        measured(model, tmp_path, "clams-fr", **changes)


def test_weights_have_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    key = weights_key(tmp_path, "backbone")
    assert key == weights_key(tmp_path, "backbone")
    assert key != weights_key(tmp_path, "another") != weights_key(tmp_path, "another", "main")
    (tmp_path / "a.safetensors").write_bytes(b"2")
    assert key != weights_key(tmp_path, "backbone")


def test_prompts_that_do_not_fit_are_counted(tmp_path: Path, model: nn.Module) -> None:
    model.config.max_position_embeddings = 50  # type: ignore[union-attr]
    (score,) = measured(model, tmp_path, "clams-fr")
    texts = [
        pair[key]
        for pair in read_pairs(pair_files()["clams-fr"])[:LIMIT]
        for key in ("good", "bad")
    ]
    long = sum(len(text.encode()) > 50 for text in texts)
    assert 0 < score.num_truncated == long < len(texts)


def arc(path: str, **_: Any) -> DatasetDict:
    """A stand-in for a data set of the Hub."""
    docs = [
        {
            "question": f"Which is number {i}?", "answerKey": "ABCD"[i % 4], "answer": "ABCD"[i % 4],
            "choices": {"text": [f"{i} {letter}" for letter in "abcde"], "label": list("ABCDE")},
        }
        for i in range(20)
    ]  # fmt: skip
    return DatasetDict(
        {split: Dataset.from_list(docs) for split in ("train", "validation", "test")}
    )


def test_any_task_of_lm_eval(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", arc)
    random_state = hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest()
    (score,) = measured(model, tmp_path, "arc_challenge")
    assert (score.metric, score.num_fewshot, score.num_items, score.role) == (
        "acc_norm",
        0,
        LIMIT,
        "none",
    )
    assert hashlib.sha256(repr(np.random.get_state()).encode()).hexdigest() == random_state
    # Drawn examples: both sides see the same, and so does whoever measures again.
    five = [t for t in plan_tasks(["paper-en"], sets={}) if t.name == "commonsense_qa"]
    monkeypatch.setattr("neutral_residues.evaluation.tasks.scoring.BY_LETTER", ())
    commonsense = [_measure_planned(model, tmp_path, five, key) for key in ("one", "two")]
    assert commonsense[0] == commonsense[1]
    assert (commonsense[0].num_fewshot, commonsense[0].suite) == (5, "paper-en")
    # The Norwegian one has test questions only.
    (norwegian,) = (
        t for t in plan_tasks(["paper-nb"], sets={}) if t.name.startswith("norcommonsenseqa")
    )
    assert _measure_planned(model, tmp_path, [norwegian], "one").num_fewshot == 0
    assert commonsense[0].num_truncated > 0  # five examples in bytes do not fit 256


def _measure_planned(model: nn.Module, folder: Path, tasks: Any, key: str) -> TaskScore:
    (score,) = measure_tasks(
        model, load_tokenizer(str(folder / "backbone")), tasks, settings=TaskSettings(4, 128, LIMIT), streams=[],
        folder=folder / "tasks", model_key=key, console=Console(file=io.StringIO()),
    )  # fmt: skip
    return score


def test_without_a_network_what_is_done_stays(tmp_path: Path, model: nn.Module) -> None:
    with pytest.raises(
        UserError, match="data of task hellaswag_fr are not on this machine"
    ) as caught:
        measured(model, tmp_path, "clams-fr", "hellaswag_fr", "clams-de")
    assert "HF_HOME" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "tasks" / "clams-fr.json").is_file()
    assert not (tmp_path / "tasks" / "clams-de.json").exists()


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neutral_residues.evaluation.tasks.runner.find_spec", lambda name: None)
    assert plan_tasks([], sets={}) == []
    with pytest.raises(UserError, match=r"pip install neutral-residues\[tasks\]"):
        plan_tasks(["quick"], sets={})


def test_a_group_counts_all_items_alike(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", arc)
    (score,) = measured(model, tmp_path, "ai2_arc")
    kept = lines(tmp_path, "ai2_arc")
    assert {line["task"] for line in kept} == {"arc_challenge", "arc_easy"}
    assert score.num_items == len(kept) == 2 * LIMIT
    assert score.extended == pytest.approx(np.mean([line["extended"]["acc_norm"] for line in kept]))


def test_a_task_that_its_author_broke_is_one_line(
    tmp_path: Path, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm_eval.api.task.datasets.load_dataset", arc)
    monkeypatch.setattr(
        "lm_eval.api.task.ConfigurableTask.process_results",
        lambda *a: json.loads("this wants another package"),
    )
    with pytest.raises(UserError, match="task arc_challenge failed inside lm-eval") as caught:
        measured(model, tmp_path, "arc_challenge")
    assert "\n" not in str(caught.value)
