"""Where the collator puts the domain labels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from neutral_residues import UserError
from neutral_residues.training.collator import DomainLabelCollator

Rows = list[dict[str, Any]]


def placed(
    collator: Callable[[Rows], dict[str, Any]], *rows: tuple[list[int], Any]
) -> list[list[int]]:
    features = [{"input_ids": ids, "domain_labels": labels} for ids, labels in rows]
    return DomainLabelCollator(collator)(features)["domain_labels"].tolist()


def collate(
    *ids: list[int], mask: list[list[int]] | None = None
) -> Callable[[Rows], dict[str, Tensor]]:
    batch = {"input_ids": torch.tensor(ids)} | (
        {"attention_mask": torch.tensor(mask)} if mask else {}
    )
    return lambda rows: batch


def test_labels_go_where_the_tokens_went() -> None:
    rows = ([5, 6, 7], [1, 0, 1]), ([8], 1)
    assert placed(collate([5, 6, 7], [8, 0, 0]), *rows) == [[1, 0, 1], [1, -100, -100]]
    assert placed(collate([5, 6, 7], [0, 0, 8]), *rows) == [[1, 0, 1], [-100, -100, 1]]
    assert placed(collate([5, 6, 7, 8]), *rows) == [[1, 0, 1, 1]]
    assert placed(collate([5, 6, 7, 8, 0, 0]), *rows) == [[1, 0, 1, 1, -100, -100]]


def test_the_mask_tells_left_from_right_where_tokens_look_like_padding() -> None:
    rows = ([5, 6, 7], 0), ([0, 0], 1)
    left = placed(collate([5, 6, 7], [0, 0, 0], mask=[[1, 1, 1], [0, 1, 1]]), *rows)
    right = placed(collate([5, 6, 7], [0, 0, 0], mask=[[1, 1, 1], [1, 1, 0]]), *rows)
    assert (left[1], right[1]) == ([-100, 1, 1], [1, 1, -100])


@pytest.mark.parametrize(
    "moved",
    [
        ([5, 6], [8, 0]),
        ([5, 7, 6], [8, 0, 0]),
        ([8, 0, 0], [5, 6, 7]),
        ([5, 6, 7],),
        ([8, 5, 6, 7],),
    ],
)
def test_a_collator_that_cuts_or_moves_tokens_is_found_out(moved: tuple[list[int], ...]) -> None:
    with pytest.raises(UserError, match="cut, moved or changed tokens"):
        placed(collate(*moved), ([5, 6, 7], [1, 0, 1]), ([8], 1))
