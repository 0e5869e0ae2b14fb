"""What the time is best spent on, from what was measured."""

from typing import Any

import pytest

from neutral_residues.advice.best_use import best_use
from tiny_texts import both, config


def of_time(
    target: dict[str, Any] | None = None,
    *,
    trial_drop: float | None = 0.29,
    is_protected: bool = True,
    **changes: Any,
) -> str:
    found = best_use(
        config(**changes), both(target), trial_drop=trial_drop, is_protected=is_protected
    )
    return found.of_time


def test_an_ordinary_run_is_trained() -> None:
    assert of_time() == of_time(trial_drop=None) == "training"


@pytest.mark.parametrize(
    ("trial_drop", "expected"), [(-0.012, "nothing"), (0.0, "nothing"), (0.037, "training")]
)
def test_steps_that_teach_nothing(trial_drop: float, expected: str) -> None:
    """As measured: fine-tuning on more novels, neutral residues on them, and on non-fiction."""
    assert of_time(trial_drop=trial_drop) == expected


def test_a_known_target_is_believed_where_nothing_was_tried() -> None:
    known = {"backbone_bits": 1.0}
    assert of_time(known, trial_drop=None) == "nothing"
    assert of_time(known, trial_drop=0.1) == "training"


def test_new_tokens_come_before_training_on_many_small_ones() -> None:
    small = {"tokens_per_word": 10.0}
    assert of_time(small) == "vocabulary"
    assert of_time(small, vocabulary={"size": 500}) == "training"
    assert of_time(small, trial_drop=0.0) == "nothing"


def test_replay_protects_where_nothing_else_does() -> None:
    assert of_time(is_protected=False) == "replay"
    data = config().data.model_dump() | {"source_share": 0.3}
    assert of_time(is_protected=False, data=data) == "training"
