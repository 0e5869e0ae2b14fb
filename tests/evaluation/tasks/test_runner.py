"""Finished tasks are kept, the others measured; and what cannot be measured is one line."""

from typing import Any

import pytest

pytest.importorskip("lm_eval")

import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge
from neutral_residues.errors import UserError
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
    new: list[str] = []
    both = measured.scores("clams-fr", "clams-de", on_score=lambda score: new.append(score.name))
    assert calls == [["clams-fr"], ["clams-de"], ["clams-de"]]
    assert new == ["clams-de"]
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
