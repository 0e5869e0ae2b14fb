"""Rows that switch between source and target text, segment by segment.

    segments     0000000000111111111111112222222233...
    a row        ssssssssssttttttttttttttsssssssstt...      begins with the first text
    the rest     ttttttttttssssssssssssssttttttttss...      begins with the second

Each text continues where it stopped, also in the rest, so two rows hold the same tokens as before.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neutral_residues.config.data import SPLICED_TOKENS

MIN_SEGMENT, MAX_SEGMENT = SPLICED_TOKENS // 2, 64
"""Tokens of the shortest and of the longest segment."""


def segments(num_tokens: int, random: np.random.Generator) -> NDArray[np.int64]:
    """(T,) number of each token's segment, from 0. Lengths are drawn uniformly from 8 to 64, at
    most half of the row; the last one ends with the row.

    Args:
        num_tokens: T, at least `SPLICED_TOKENS`, so that each row switches.
    """
    longest = min(MAX_SEGMENT, num_tokens // 2)
    lengths = random.integers(MIN_SEGMENT, longest, size=num_tokens, endpoint=True)
    return np.repeat(np.arange(num_tokens), lengths)[:num_tokens]


def starts(segments_T: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(T,) whether each token is the first after a switch."""
    return np.diff(segments_T, prepend=0) != 0


def splice(first: NDArray[Any], second: NDArray[Any], segments_T: NDArray[Any]) -> NDArray[Any]:
    """The beginnings of two texts (..., T) in one row: even segments from the first, odd ones from
    the second."""
    is_first_T = segments_T % 2 == 0
    row = np.empty_like(first)
    row[..., is_first_T] = first[..., : is_first_T.sum()]
    row[..., ~is_first_T] = second[..., : (~is_first_T).sum()]
    return row


def splice_rest(
    first: NDArray[Any], second: NDArray[Any], segments_T: NDArray[Any]
) -> NDArray[Any]:
    """The rest of both texts after `splice`, in a row with the same segments; it begins with the
    second."""
    num_first = int((segments_T % 2 == 0).sum())
    num_second = len(segments_T) - num_first
    return splice(np.roll(second, -num_second, -1), np.roll(first, -num_first, -1), segments_T)
