"""Windows: every token once, with enough before it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neutral_residues.errors import UserError
from neutral_residues.evaluation.windows import Window, Windows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(num_tokens=st.integers(1, 300), context=st.integers(1, 64), data=st.data())
def test_every_token_is_scored_once_in_windows_of_one_length(
    num_tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    rows = data.draw(st.integers(1, 9))
    batches = list(Windows(0, context, stride, batch_rows=rows).batches(num_tokens))
    assert all(len(batch) == rows for batch in batches[:-1])
    assert 1 <= len(batches[-1]) <= rows
    plan = [window for batch in batches for window in batch]
    scored = [token for w in plan for token in range(w.scored_from, w.end)]
    assert scored == list(range(num_tokens))
    assert {w.end - w.start for w in plan} == {min(context, num_tokens)}
    for window in plan[1:]:
        assert window.end - window.scored_from <= stride
        assert window.scored_from - window.start >= context - stride


def test_rows_by_hand() -> None:
    tokens = np.array([5, 6, 7, 8], dtype=np.uint16)
    inputs, targets = Windows(0, 3, 1).rows(tokens, [Window(0, 3, 0), Window(1, 4, 3)])
    assert inputs.tolist() == [[0, 5, 6], [5, 6, 7]]
    assert targets.tolist() == [[5, 6, 7], [6, 7, 8]]


@pytest.mark.parametrize(
    ("context", "vocabulary", "rows"), [(128, 4096, 16), (512, 49152, 5), (2048, 128_256, 1)]
)
def test_the_logits_of_a_batch_fit_into_memory(context: int, vocabulary: int, rows: int) -> None:
    windows = Windows(0, context, context, batch_rows=16).for_vocabulary(vocabulary)
    assert windows.batch_rows == rows
    assert rows == 1 or rows * context * vocabulary <= 2**27


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 1, 1), "context_tokens; got 0"),
        ((16, 0, 1), "stride_tokens; got 0"),
        ((16, 17, 1), r"stride_tokens; got 17; allowed: 1 to context_tokens \(16\)"),
        ((16, 8, 0), "batch_rows; got 0"),
    ],
)
def test_numbers_out_of_range(numbers: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Windows(0, *numbers)
