"""Which corpus each row of a role comes from, if its corpora have shares.

    P_c(n)      rows due to corpus c among the first n: the sum of its shares over them
    promise     the number that it gets differs from P_c(n) by less than one, for all c and n

Row m of a corpus, m from 1, may come once P_c exceeds m - 1, and must be there when P_c reaches m.
Of the corpora that may have it, each row goes to the one with the earliest deadline. As the shares
sum to 1, there are always enough rows before each deadline, and none is missed.

Constant shares repeat after the smallest number of rows that gives each corpus whole rows (10 for
0.3 and 0.7). Shares that change linearly are allotted for the whole run, some microseconds a row.
All arithmetic is on integers.
"""

import functools
import math
import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from neutral_residues.config.data import Shares, exact


@dataclass(frozen=True)
class Allotment:
    """The corpus of each row of a period, which repeats."""

    corpora: NDArray[np.uint16]  # (period,)

    def find(self, row: int) -> tuple[int, int]:
        """The corpus of a row, and how many earlier rows are from it."""
        round_, row = divmod(row, len(self.corpora))
        corpus = int(self.corpora[row])
        rows = self._rows[corpus]
        return corpus, round_ * len(rows) + int(np.searchsorted(rows, row))

    @cached_property
    def _rows(self) -> list[NDArray[np.int64]]:
        """For each corpus its rows in the period."""
        return [np.flatnonzero(self.corpora == c) for c in range(int(self.corpora.max()) + 1)]


@functools.lru_cache(maxsize=4)
def allotment(shares: tuple[Shares, ...], num_rows: int) -> Allotment:
    """The corpora of `num_rows` rows, for shares (first, last) that sum to 1 at both ends."""
    firsts, lasts = ([exact(share) for share in at] for at in zip(*shares, strict=True))
    whole = math.lcm(*(share.denominator for share in (*firsts, *lasts)))
    period = whole if firsts == lasts else num_rows
    # P_c(n) = n first + n^2 (last - first) / (2 period), times `unit` to be an integer.
    slopes = [int(2 * period * whole * first) for first in firsts]
    bends = [int(whole * (last - first)) for first, last in zip(firsts, lasts, strict=True)]
    due = [partial(_due, slope, bend) for slope, bend in zip(slopes, bends, strict=True)]
    unit, length = 2 * period * whole, min(period, num_rows)
    return Allotment(np.array(_earliest_first(due, unit, period, length), dtype=np.uint16))


def _due(slope: int, bend: int, num_rows: int) -> int:
    return num_rows * (slope + bend * num_rows)


def _earliest_first(
    due: Sequence[functools.partial[int]], unit: int, period: int, length: int
) -> list[int]:
    """The corpora of `length` rows; `unit` is the value of one row in the counts of `due`."""

    within = range(min(period, sys.maxsize - 1) + 1)

    def deadline(corpus: int, number: int) -> int:
        return bisect_left(within, number * unit, key=due[corpus])

    given = [0] * len(due)
    deadlines = [deadline(corpus, 1) for corpus in range(len(due))]
    chosen = []
    for row in range(1, length + 1):
        ready = [c for c in range(len(due)) if due[c](row) > given[c] * unit]
        corpus = min(ready, key=deadlines.__getitem__)
        given[corpus] += 1
        deadlines[corpus] = deadline(corpus, given[corpus] + 1)
        chosen.append(corpus)
    return chosen
