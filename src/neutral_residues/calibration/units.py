"""Divides source text into units. A unit is what is drawn independently, and promises are about
units.

Tokens of a document depend on each other, and so do documents of one book, article or site; only
these sources are drawn independently. So a unit is all documents of one source, and counts once,
however long it is. (Hierarchical exchangeability: Lee, Barber and Willett, arXiv 2306.06342.)

Suffixes: D documents, U units.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from neutral_residues.calibration.statistics import num_tuning, units_needed
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError

SEED = 0
"""Seed of the choice of tuning units, and of one document for each unit."""


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one source text, and which of them are for tuning."""

    stream: TokenStream
    group_by: str | None
    unit_D: NDArray[np.int64]  # the unit of each document, 0 to U - 1
    is_tuning_U: NDArray[np.bool_]

    @classmethod
    def of(
        cls, stream: TokenStream, groups: Iterable[str] | None = None, group_by: str | None = None
    ) -> Self:
        """The units of `stream`.

        Args:
            groups: the source of each document; None: each document is a unit.
            group_by: name of the field with the source, for messages and the record.
        """
        unit_D = np.arange(stream.num_documents)
        if groups is not None:
            _, unit_D = np.unique(np.array(list(groups), dtype=object), return_inverse=True)
        number = int(unit_D.max()) + 1
        tuning = np.zeros(number, dtype=bool)
        chosen = np.random.default_rng(SEED).permutation(number)[: num_tuning(number)]
        tuning[chosen] = True
        return cls(stream, group_by, unit_D.astype(np.int64), tuning)

    @property
    def num_units(self) -> int:
        """U, the number of all units."""
        return len(self.is_tuning_U)

    @property
    def num_testing(self) -> int:
        """Number of units that are not for tuning."""
        return int((~self.is_tuning_U).sum())

    def check_enough(self, at_most: float, confidence: float | None) -> None:
        """Raise a UserError if there are too few units to keep the promise, whatever is
        measured."""
        needed = units_needed(at_most, confidence)
        if self.num_units < needed:
            kind = f"different {self.group_by!r}" if self.group_by else "documents"
            sure = "on average" if confidence is None else f"with {100 * confidence:g} % confidence"
            raise UserError(
                f"{self.stream.name} has too few units for {100 * at_most:g} % {sure}",
                got=f"{self.num_units} {kind}",
                allowed=f"{needed} or more",
                do="give more text, or promise less (--at-most, --confidence)",
            )

    def tuning_tokens(self) -> NDArray[np.bool_]:
        """(N,) whether each token of the stream is in a tuning unit."""
        lengths_D = np.diff(np.concatenate([[0], self.stream.document_ends]))
        return np.repeat(self.is_tuning_U[self.unit_D], lengths_D)

    def means(self, sums_D: NDArray[np.float64], sizes_D: NDArray[np.float64]) -> "Losses":
        """The mean of each unit, from the sums and counts (D,) of its documents."""
        totals = [np.bincount(self.unit_D, it, self.num_units) for it in (sums_D, sizes_D)]
        losses_U = totals[0] / totals[1]
        return Losses(losses_U[self.is_tuning_U], losses_U[~self.is_tuning_U])

    def shares(self, is_so_D: NDArray[np.bool_]) -> "Losses":
        """For each unit, the share of its documents for which a condition (D,) is true."""
        found = self.means(is_so_D.astype(np.float64), np.ones(len(is_so_D)))
        return replace(found, are_binary=self.num_units == len(self.unit_D))

    def one_document_each(self) -> Sequence[int]:
        """One document of each unit that is not for tuning, drawn at random."""
        order = np.random.default_rng(SEED).permutation(len(self.unit_D))
        _, first = np.unique(self.unit_D[order], return_index=True)
        return sorted(order[first[~self.is_tuning_U]].tolist())


@dataclass(frozen=True, eq=False)
class Losses:
    """The loss of each unit, a number from 0 to 1: of tuning units, and of the others."""

    tuning: NDArray[np.float64]
    testing: NDArray[np.float64]
    are_binary: bool = False  # they can only be 0 or 1
