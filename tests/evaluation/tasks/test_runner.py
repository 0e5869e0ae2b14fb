"""Finished tasks are kept, the others measured; and what cannot be measured is one line."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")

import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge
from neutral_residues.errors import UserError
from neutral_residues.results.record import TaskScore
from tiny_tasks import LIMIT, Measured


def test_a_finished_task_is_kept(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = bridge.answer_both, []

    def stopped_in_the_second(*args: Any, **kwargs: Any) -> Any:
        calls.append(list(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(bridge, "answer_both", stopped_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        measured.scores("clams-fr", "clams-de")
    kept = sorted(path.name for path in (measured.folder / "tasks").iterdir())
    assert kept == ["clams-fr.json", "clams-fr.jsonl"]
    new: list[TaskScore] = []
    both = measured.scores("clams-fr", "clams-de", on_scores=new.extend)
    assert calls == [["clams-fr"], ["clams-de"], ["clams-de"]]
    assert [score.name for score in new] == ["clams-de"]
    monkeypatch.setattr(bridge, "answer_both", lambda *a, **k: pytest.fail("measured again"))
    assert measured.scores("clams-fr", "clams-de") == both
    for changes in ({"model_key": "other weights"}, {"limit": LIMIT + 1}):
        with pytest.raises(pytest.fail.Exception):
            measured.scores("clams-fr", **changes)


def test_progress_ends_with_all_sequences_of_both_models(measured: Measured) -> None:
    calls: list[tuple[str, int, int]] = []
    measured.scores("clams-fr", on_progress=lambda *call: calls.append(call))
    name, done, total = calls[-1]
    assert (name, done, total) == ("clams-fr", total, 2 * 2 * LIMIT)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)


def write(folder: Path, name: str, items: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(item) + "\n" for item in items)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def test_all_files_of_a_folder(measured: Measured) -> None:
    folder = measured.folder / "own"
    options = [["four", "five"], ["six", "two", "one", "ten"]]
    choices = [{"query": f"{n} is", "choices": options[n % 2], "gold": n % 2} for n in range(20)]
    write(folder, "sums_en", choices)
    write(folder, "ends_fr", [{"context": f"{n} is", "continuation": "one"} for n in range(20)])
    wild = [score.metric for score in measured.scores(task_data=folder)]
    assert wild == ["acc", "acc_norm", "acc"]  # where perplexity is no number it is left out
    with torch.no_grad():
        for parameter in measured.model.parameters():
            if parameter.requires_grad:
                parameter *= 0.1
    scores = measured.scores(task_data=folder, model_key="tamer weights")
    found = {(score.name, score.metric): score for score in scores}
    assert list(found) == [
        ("ends_fr", "acc"), ("ends_fr", "perplexity"), ("sums_en", "acc_norm"), ("sums_en", "acc"),
    ]  # fmt: skip
    norm, perplexity = found["sums_en", "acc_norm"], found["ends_fr", "perplexity"]
    assert (norm.chance, norm.num_items, norm.num_fewshot) == ((1 / 2 + 1 / 4) / 2, LIMIT, 0)
    assert (norm.suite, norm.language, norm.role) == ("files", "en", "none")
    assert (perplexity.chance, perplexity.unit, perplexity.direction) == (None, "score", "lower")

    # Of the answers' log-likelihoods.
    kept = measured.samples("ends_fr")
    nats = {m: [line[m]["answers"][0][0] for line in kept] for m in ("backbone", "extended")}
    before, after = (math.exp(-statistics.fmean(found)) for found in nats.values())
    assert (perplexity.backbone, perplexity.extended) == pytest.approx((before, after))
    assert perplexity.difference == pytest.approx(after - before)
    assert perplexity.low < perplexity.difference < perplexity.high


def test_examples_of_a_file(measured: Measured) -> None:
    folder = measured.folder / "own"
    items = [{"query": f"{n} is", "choices": ["one", "two"], "gold": n % 2} for n in range(6)]
    write(folder, "sums_en", items)
    for num_fewshot in (None, 5):
        (score, _) = measured.scores("sums_en", task_data=folder, num_fewshot=num_fewshot)
        assert score.num_fewshot == (num_fewshot or 0)
    with pytest.raises(UserError, match=r"sums_en has too few items .*got 6 .*allowed: 0 to 5"):
        measured.plan("sums_en", task_data=folder, num_fewshot=6)


def test_data_that_are_missing_show_before_anything_is_measured(measured: Measured) -> None:
    with pytest.raises(
        UserError, match="data of task hellaswag_fr are not on this machine"
    ) as caught:
        measured.scores("clams-fr", "hellaswag_fr", "clams-de")
    assert "HF_HOME" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (measured.folder / "tasks").exists()


def test_a_suite_says_what_lm_eval_lacks(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "load_named", lambda name: {})
    assert measured.plan("paper-fr").missing == ("paper-fr: lm-eval has no CommonsenseQA (fr)",)


def test_without_lm_eval(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neutral_residues.evaluation.tasks.runner.find_spec", lambda name: None)
    assert measured.scores() == []
    with pytest.raises(UserError, match=r"pip install neutral-residues\[tasks\]"):
        measured.scores("quick")
