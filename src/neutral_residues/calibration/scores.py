"""How much a document is like the text that was calibrated on: a conformal p-value.

The score of a text is the mean over its first n tokens of the largest gate logit, for the largest n
of `LENGTHS` that it has; its p-value is the share of the calibration's documents (one of each unit)
that score as high over as many tokens, the text counted. If it was drawn as they were, a p-value of
u or less has the probability u at most (Vovk, Gammerman and Shafer, *Algorithmic Learning in a
Random World*, 2005). A low one says: unlike what was calibrated, so nothing is promised for it.

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
"""Set -> number of tokens -> scores of its documents, sorted."""


def document_scores(
    logits_N: Mapping[str, NDArray[np.float32]], units: Units
) -> dict[int, list[float]]:
    """Of a document of each unit that is not for tuning, at each length, sorted."""
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
    """Of a text's largest gate logits, the mean over the first `length` tokens."""
    return float(largest_T[:length].mean(dtype=np.float64))


def text_p_value(largest_T: NDArray[np.float32], scores: Scores) -> float | None:
    """Of the text with these largest gate logits: the largest over the calibrated sets, as text may
    be like any of them; None for one that is too short to be compared."""
    found = []
    for by_length in scores.values():
        lengths = [n for n, known in by_length.items() if n <= len(largest_T) and known]
        if lengths:
            length = max(lengths)
            found.append(conformal_p_value(score(largest_T, length), by_length[length]))
    return max(found, default=None)
