"""Token streams -> training rows in a fixed, seeded order, with an exact share of source rows.

Row i is a pure function of (streams, block_tokens, source_share, seed, i):

    source row        iff floor((i + 1) p) > floor(i p), p the source share as the decimal number that was written
    which block       the k-th source row takes block permutation_e(k mod n), e = k // n, of the n blocks of all
                      source corpora together; the same for target rows

So the share is exact, to within one row, in every run of rows from the first; corpora of one role
are mixed in proportion to their size; no block comes again before all of its role have come;
resuming at row i needs only the number i; and the number of loader workers cannot matter. The
permutation is computed, not stored: memory stays flat, whatever the size of the corpus.

The order is already shuffled: read the rows with a sequential sampler.
"""

import functools
import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neutral_residues.config.run import Role
from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError

LABELS: dict[Role, int] = {"source": SOURCE, "target": TARGET}
# Enough that even a domain of a few bits is shuffled well; each costs under a microsecond.
FEISTEL_ROUNDS = 8


class Row(TypedDict):
    """One training row of T = block_tokens tokens."""

    input_ids: Tensor
    """(T,) int64."""
    domain_labels: Tensor
    """(T,) int64: SOURCE or TARGET, the same for the whole row."""
    corpus_id: int
    """Index of the row's corpus among the streams of the mixture."""


@dataclass(frozen=True)
class CorpusPlan:
    """What one corpus gives to a mixture."""

    name: str
    role: Role
    num_blocks: int
    """Whole blocks it holds; 0 where its role has no rows."""
    expected_rows: float
    """Rows it gives; exact after whole epochs of its role, expected within one."""


@dataclass(frozen=True)
class MixturePlan:
    """What a mixture reads: rows, tokens, and how often each role's text comes round."""

    source_rows: int
    target_rows: int
    source_tokens: int
    target_tokens: int
    source_epochs: float
    """Source rows / blocks of all source corpora; over 1, text is seen again."""
    target_epochs: float
    corpora: tuple[CorpusPlan, ...]


class Mixture(Dataset[Row]):
    """`num_rows` rows of `block_tokens` tokens; see the head of this file for which is which.

    Args:
        streams: training streams of both roles. Those of a role with share 0 are not read.
        source_share: p, the share of rows from source corpora, 0 <= p <= 1.
        seed: another seed, another order; any integer.

    Raises:
        UserError: a share out of range; a role that has rows but no stream; a stream smaller than
            one block.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        block_tokens: int,
        source_share: float,
        num_rows: int,
        seed: int,
    ) -> None:
        if not 0 <= source_share <= 1:
            raise UserError(
                "source_share", got=source_share, allowed="0 <= share <= 1", do="0.1 is usual"
            )
        if block_tokens < 1 or num_rows < 1:
            got = f"block_tokens {block_tokens}, num_rows {num_rows}"
            raise UserError(
                "a mixture without rows", got=got, allowed="both at least 1", do="train for longer"
            )
        self.streams = tuple(streams)
        self.block_tokens, self.num_rows, self.seed = block_tokens, num_rows, seed
        # Through its decimal form: 0.1 is a tenth, not the nearest binary number, so ten rows hold
        # one source row.
        self.source_share = Fraction(str(source_share))
        self._pools = {role: self._pool(role) for role in LABELS if self._has_rows(role)}

    def _has_rows(self, role: Role) -> bool:
        return self.source_share > 0 if role == "source" else self.source_share < 1

    def _pool(self, role: Role) -> "_Pool":
        ids = [i for i, stream in enumerate(self.streams) if stream.role == role]
        if not ids:
            raise UserError(
                f"source_share asks for rows of {role} text and there is none",
                got=(
                    f"source_share {float(self.source_share)}, corpora"
                    f" {[stream.name for stream in self.streams]}"
                ),
                allowed="source_share 0 without source corpora, 1 without target corpora",
                do=f"add a {role} corpus or change source_share",
            )
        return _Pool(ids, [len(self.streams[i].blocks(self.block_tokens)) for i in ids])

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        role = self.role(index)
        count = self.rows_before(index, role)
        pool = self._pools[role]
        epoch, step = divmod(count, pool.num_blocks)
        corpus_id, block = pool.find(permuted(step, pool.num_blocks, f"{self.seed}/{role}/{epoch}"))
        tokens_T = self.streams[corpus_id].blocks(self.block_tokens)[block].astype(np.int64)
        labels_T = torch.full((self.block_tokens,), LABELS[role], dtype=torch.int64)
        return {
            "input_ids": torch.from_numpy(tokens_T),
            "domain_labels": labels_T,
            "corpus_id": corpus_id,
        }

    def role(self, index: int) -> Role:
        """Whether row `index` is of source or target text."""
        return (
            "source"
            if self.rows_before(index + 1, "source") > self.rows_before(index, "source")
            else "target"
        )

    def rows_before(self, index: int, role: Role) -> int:
        """How many of the rows 0 ... index - 1 are of this role. Integers only: exact."""
        source_rows = index * self.source_share.numerator // self.source_share.denominator
        return source_rows if role == "source" else index - source_rows

    def epochs(self, role: Role) -> float:
        """How often the blocks of a role come round; 0 for a role without rows."""
        return (
            self.rows_before(self.num_rows, role) / self._pools[role].num_blocks
            if role in self._pools
            else 0.0
        )

    def plan(self) -> MixturePlan:
        """Rows, tokens and epochs, without reading any text."""
        source_rows = self.rows_before(self.num_rows, "source")
        target_rows = self.num_rows - source_rows
        corpora = tuple(self._corpus_plan(i, stream) for i, stream in enumerate(self.streams))
        return MixturePlan(
            source_rows=source_rows,
            target_rows=target_rows,
            source_tokens=source_rows * self.block_tokens,
            target_tokens=target_rows * self.block_tokens,
            source_epochs=self.epochs("source"),
            target_epochs=self.epochs("target"),
            corpora=corpora,
        )

    def _corpus_plan(self, corpus_id: int, stream: TokenStream) -> CorpusPlan:
        pool = self._pools.get(stream.role)
        num_blocks = pool.blocks_of(corpus_id) if pool else 0
        return CorpusPlan(
            stream.name, stream.role, num_blocks, num_blocks * self.epochs(stream.role)
        )


class _Pool:
    """The blocks of all corpora of one role, numbered through."""

    def __init__(self, corpus_ids: list[int], num_blocks: list[int]) -> None:
        self.corpus_ids = corpus_ids
        self.ends = list(accumulate(num_blocks))
        self.num_blocks = self.ends[-1]

    def find(self, block: int) -> tuple[int, int]:
        """Corpus and block within it."""
        i = bisect_right(self.ends, block)
        return self.corpus_ids[i], block - (self.ends[i - 1] if i else 0)

    def blocks_of(self, corpus_id: int) -> int:
        i = self.corpus_ids.index(corpus_id)
        return self.ends[i] - (self.ends[i - 1] if i else 0)


def permuted(index: int, size: int, key: str) -> int:
    """Where `index` goes under a permutation of 0 ... size - 1 that `key` picks; no table, the same
    on every machine.

    A Feistel network permutes the 4^h numbers of 2h bits whatever its round function is: each round
    swaps the halves and adds (xor) a hash of one to the other, which can be undone. Cycle walking
    makes it one of `size` numbers: apply it again until the result is below `size`. With the
    smallest h, 4^h < 4 size, so that takes fewer than 4 applications on average. Luby and Rackoff
    1988; Black and Rogaway 2002, section 4.
    """
    assert 0 <= index < size
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for round_key in _round_keys(key):
            left, right = right, left ^ (_scramble(right ^ round_key) & mask)
        index = left << half | right
        if index < size:
            return index


@functools.lru_cache(maxsize=16)
def _round_keys(key: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(key.encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    return tuple(int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))


def _scramble(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): each bit in decides every bit
    out."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31
