"""Compares a new text with the text of the calibration: a conformal p-value.

The score of a text is the largest gate logit of each token, averaged over its first n tokens, for
the largest n of `LENGTHS` that fits. Its p-value is the share of documents, among those of the
calibration (one of each unit) and the text itself, that score at least as high over n tokens. If
the text was drawn like these documents, the p-value is at most u with probability at most u (Vovk,
Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005). A low p-value means that the
text is unlike that of the calibration, so that nothing is promised for it.

Suffix: N tokens of a stream.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from neutral_residues.calibration.statistics import conformal_p_value
from neutral_residues.calibration.units import Units

LENGTHS = (16, 64, 256)
"""Numbers of tokens at which texts are compared."""

Scores = Mapping[str, Mapping[int, Sequence[float]]]
"""Source text of the calibration -> number of tokens -> sorted scores of its documents."""


def document_scores(
    logits_N: Mapping[str, NDArray[np.float32]], units: Units
) -> dict[int, list[float]]:
    """Length -> sorted scores of one document for each unit that is not for tuning, from the logits
    (gate -> (N,)) of the whole stream."""
    largest_N = np.maximum.reduce(list(logits_N.values()))
    ends = units.stream.document_ends
    texts = [largest_N[_start(ends, n) : ends[n]] for n in units.one_document_each()]
    return {
        length: sorted(score(text, length) for text in texts if len(text) >= length)
        for length in LENGTHS
    }


def _start(ends: NDArray[np.int64], number: int) -> int:
    return int(ends[number - 1]) if number else 0


def score(largest_T: NDArray[np.float32], length: int) -> float:
    """The mean of a text's largest gate logits over its first `length` tokens."""
    return float(largest_T[:length].mean(dtype=np.float64))


def text_p_value(largest_T: NDArray[np.float32], scores: Scores) -> float | None:
    """P-value of a text: the largest over the source texts of the calibration, as it may be like
    any of them; None if it is too short.

    Args:
        largest_T: the largest gate logit of each of its tokens.
        scores: from the calibration.
    """
    found = []
    for by_length in scores.values():
        lengths = [n for n, known in by_length.items() if n <= len(largest_T) and known]
        if lengths:
            length = max(lengths)
            found.append(conformal_p_value(score(largest_T, length), by_length[length]))
    return max(found, default=None)
