"""Windows: every token once, with enough before it."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neutral_residues.evaluation.windows import Window, window_rows, windows


@settings(max_examples=300, deadline=None, derandomize=True)
@given(num_tokens=st.integers(1, 300), context=st.integers(1, 64), data=st.data())
def test_every_token_is_scored_once_in_windows_of_one_length(
    num_tokens: int, context: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, context))
    plan = list(windows(num_tokens, context_tokens=context, stride_tokens=stride))
    scored = [token for w in plan for token in range(w.scored_from, w.end)]
    assert scored == list(range(num_tokens))
    assert {w.end - w.start for w in plan} == {min(context, num_tokens)}
    for window in plan[1:]:
        assert window.end - window.scored_from <= stride
        assert window.scored_from - window.start >= context - stride


def test_rows_by_hand() -> None:
    tokens = np.array([5, 6, 7, 8], dtype=np.uint16)
    inputs, targets = window_rows(tokens, [Window(0, 3, 0), Window(1, 4, 3)], end_of_text=0)
    assert inputs.tolist() == [[0, 5, 6], [5, 6, 7]]
    assert targets.tolist() == [[5, 6, 7], [6, 7, 8]]
