"""Token streams -> training rows in a fixed, seeded order, with an exact share of source rows.

Row i is a pure function of (streams, block_tokens, the three shares, seed, i):

    source row      iff floor((i + 1) p) > floor(i p), p the source share as the decimal number
                    that was written
    which block     the k-th source row takes block permutation_e(k mod n), e = k // n, of the n
                    blocks of all source corpora together; the same for target rows
    spliced         by the first rule again, among source rows, with the share of spliced ones; and
                    the target row before each of these (there is one, as p is at most 1/2)
    noised          by the first rule again, among the source rows that are not spliced, with the
                    share of noised ones

So the share is exact, to within one row, in every run of rows from the first; corpora of one role
are mixed in proportion to their size; no block is repeated before all of its role were used;
resuming at row i needs only the number i; and the number of loader workers does not matter. The
permutations are NumPy's: each process keeps the one of the current epoch, 8 bytes for each block
(160 MB for 10 G tokens in blocks of 512). Another version of NumPy may give another order.

If the corpora of a role have shares, `allotment.py` says which of them a row comes from, exact in
the same way, and each has its own permutation and epochs. Shares that change during the run depend
on its length too.

Noise, ours and not the paper's (LAB.md, "what moved the curve, and what did not"): trained on clean
source rows only, a gate learns "not this source text" and opens for any other text, English of
another genre too. In a noised source row a random share of the tokens, from none to all, is
replaced by tokens drawn from the whole vocabulary; its local loss counts as usual, its
language-modelling loss does not, as there is nothing to predict.

Splicing, ours too: where source text follows target text, gates that were not trained on that stay
half open. The texts of a spliced source row and of the target row before it go into the same two
rows in turns, 8 to 64 tokens at a time, each text in its order (`splicing.py`). No token is lost or
repeated, so shares, blocks and epochs stay as they are; labels and corpora are per token. The first
token after a switch has no language-modelling loss: nothing before it says that a switch will come.
Which rows are spliced does not depend on the noise, so all methods read the same text.

The order is already shuffled: read the rows with a sequential sampler.
"""

import functools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from types import MappingProxyType
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from neutral_residues.config.data import Role, Shares, exact
from neutral_residues.data.allotment import allotment
from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.data.splicing import segments, splice, splice_rest, starts
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError

LABELS: dict[Role, int] = {"source": SOURCE, "target": TARGET}


class Row(TypedDict):
    """One training row of T = block_tokens tokens."""

    input_ids: Tensor  # (T,) int64
    domain_labels: Tensor  # (T,) int64: SOURCE or TARGET
    corpus_ids: Tensor  # (T,) int64: index of the token's corpus among the streams of the mixture
    # (T,) bool: has a language-modelling loss; not so random tokens, or the questions of a chat
    predicted: Tensor


@dataclass(frozen=True)
class Noise:
    """Random tokens in a share of the source rows."""

    share: float  # of the source rows, in [0, 1]
    vocabulary: int  # tokens are drawn from 0 ... vocabulary - 1
    end_of_text: int  # but never this one


class Mixture(Dataset[Row]):
    """`num_rows` rows of `block_tokens` tokens; see the module docstring.

    Args:
        streams: training streams of both roles. Those of a role with share 0 are not read.
        shares: name of a stream -> its share of the rows of its role, at the first and the last
            row; for all streams of a role or none.
        source_share: p, the share of rows from source corpora, 0 <= p <= 1.
        seed: determines the order; 0 or above.
        noise: default: no row is noised.
        spliced_share: of the source rows, 0 to 1; see `DataSettings` for what it needs.

    Raises:
        UserError: for a share out of range, a role without a stream, or one smaller than a block.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        *,
        block_tokens: int,
        source_share: float,
        num_rows: int,
        seed: int,
        noise: Noise | None = None,
        spliced_share: float = 0,
        shares: Mapping[str, Shares] = MappingProxyType({}),
    ) -> None:
        if block_tokens < 1 or num_rows < 1:
            got = f"block_tokens {block_tokens}, num_rows {num_rows}"
            raise UserError("a mixture without rows", got=got, allowed="both at least 1")
        self.streams = tuple(streams)
        self.block_tokens, self.num_rows, self.seed = block_tokens, num_rows, seed
        self.source_share = _exact("source_share", source_share)
        self.spliced_share = _exact("spliced_share", spliced_share)
        self.noise = noise
        self.noise_share = _exact("source_noise", noise.share if noise else 0)
        self._role_shares = {"source": self.source_share, "target": 1 - self.source_share}
        read = [role for role in LABELS if self._role_shares[role] > 0]
        self._pools = {role: self._pools_of(role, shares) for role in read}

    def _pools_of(self, role: Role, shares: Mapping[str, Shares]) -> "list[_Pool]":
        ids = [i for i, stream in enumerate(self.streams) if stream.role == role]
        if not ids:
            what = f"source_share asks for rows of {role} text and there is none"
            names = [stream.name for stream in self.streams]
            got = f"source_share {float(self.source_share)}, corpora {names}"
            allowed = "source_share 0 without source corpora, 1 without target corpora"
            do = f"add a {role} corpus or change source_share"
            raise UserError(what, got=got, allowed=allowed, do=do)
        sizes = {i: len(self.streams[i].blocks(self.block_tokens)) for i in ids}
        if not any(self.streams[i].name in shares for i in ids):
            return [_Pool(ids, list(accumulate(sizes.values())))]
        return [_Pool([i], [sizes[i]], shares[self.streams[i].name], (i + 1,)) for i in ids]

    @cached_property
    def predicted_share(self) -> float:
        """Share of all tokens that is predicted, without noise and splicing: 1 without chats and
        pairs."""
        return float(
            sum(self._role_shares[role] * self._predicted_in(role) for role in self._pools)
        )

    def _predicted_in(self, role: Role) -> Fraction:
        found = Fraction(0)
        for pool in self._pools[role]:
            streams = [self.streams[i] for i in pool.corpus_ids]
            predicted, tokens = (
                sum(getattr(stream, name) for stream in streams)
                for name in ("num_predicted", "num_tokens")
            )
            share = Fraction(sum(map(exact, pool.share)), 2)  # its mean over the run
            found += share * Fraction(predicted, tokens)
        return found

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < self.num_rows:
            raise IndexError(f"row {index} of {self.num_rows}")
        if (partner := self.spliced_with(index)) is not None:
            rows_4T = self._spliced(index, partner)
        else:
            rows_4T = self._block(index)
            if self.is_noised(index):
                rows_4T[2], rows_4T[3] = self._with_noise(rows_4T[2], index), False
        labels_T, corpus_ids_T, tokens_T, predicted_T = map(torch.from_numpy, rows_4T)
        return {
            "input_ids": tokens_T,
            "domain_labels": labels_T,
            "corpus_ids": corpus_ids_T,
            "predicted": predicted_T.bool(),
        }

    def _block(self, index: int) -> NDArray[np.int64]:
        """(4, T) labels, corpora, tokens and whether each is predicted, of row `index` before
        splicing and noise."""
        role = self.role(index)
        pool, number = self._pool_of(role, self.rows_before(index, role))
        epoch, step = divmod(number, pool.num_blocks)
        order = _permutation(pool.num_blocks, (self.seed, epoch, LABELS[role] + 1, *pool.seed))
        corpus_id, block = pool.find(int(order[step]))
        rows_4T = np.empty((4, self.block_tokens), dtype=np.int64)
        rows_4T[0], rows_4T[1] = LABELS[role], corpus_id
        rows_4T[2] = self.streams[corpus_id].blocks(self.block_tokens)[block]
        rows_4T[3] = self.streams[corpus_id].predicted_block(self.block_tokens, block)
        return rows_4T

    def _pool_of(self, role: Role, number: int) -> "tuple[_Pool, int]":
        """The pool of the `number`-th row of a role, and how many earlier rows of it are from this
        pool."""
        pools = self._pools[role]
        if len(pools) == 1:
            return pools[0], number
        rows = self.rows_before(self.num_rows, role)
        which, before = allotment(tuple(pool.share for pool in pools), rows).find(number)
        return pools[which], before

    def _spliced(self, index: int, partner: int) -> NDArray[np.int64]:
        """(4, T) as `_block`, of row `index` spliced with row `partner`."""
        source, target = max(index, partner), min(index, partner)
        # Both rows draw the same segments.
        segments_T = segments(self.block_tokens, np.random.default_rng((self.seed, source)))
        into = splice if index == source else splice_rest
        rows_4T = into(self._block(source), self._block(target), segments_T)
        rows_4T[3] &= ~starts(segments_T)
        return rows_4T

    def role(self, index: int) -> Role:
        """Whether row `index` is source or target text."""
        return "source" if _is_chosen(index, self.source_share) else "target"

    def rows_before(self, index: int, role: Role) -> int:
        """Number of rows of this role among rows 0 ... index - 1."""
        source_rows = _num_chosen(index, self.source_share)
        return source_rows if role == "source" else index - source_rows

    def spliced_with(self, index: int) -> int | None:
        """The row that shares its text with row `index`, or None."""
        if self._is_spliced_source(index):
            return index - 1
        return index + 1 if self._is_spliced_source(index + 1) else None

    def _is_spliced_source(self, index: int) -> bool:
        before = self.rows_before(index, "source")
        return self.role(index) == "source" and _is_chosen(before, self.spliced_share)

    def is_noised(self, index: int) -> bool:
        """Whether row `index` is a source row with random tokens in it."""
        if self.role(index) == "target" or self._is_spliced_source(index):
            return False
        source_rows = self.rows_before(index, "source")
        not_spliced = source_rows - _num_chosen(source_rows, self.spliced_share)
        return _is_chosen(not_spliced, self.noise_share)

    def _with_noise(self, tokens_T: NDArray[Any], index: int) -> NDArray[Any]:
        assert self.noise is not None
        random = np.random.default_rng((self.seed, index))
        replaced_T = random.random(len(tokens_T)) < random.random()
        drawn_T = random.integers(self.noise.vocabulary - 1, size=len(tokens_T))
        drawn_T += drawn_T >= self.noise.end_of_text
        return np.where(replaced_T, drawn_T, tokens_T)


@dataclass(frozen=True)
class _Pool:
    """The blocks of corpora that are mixed by their size, numbered consecutively."""

    corpus_ids: list[int]
    ends: list[int]  # where the blocks of each corpus end
    share: Shares = (1, 1)  # of the rows of its role, at the first and the last
    seed: tuple[int, ...] = ()  # of its order, in addition to run, epoch and role

    @property
    def num_blocks(self) -> int:
        return self.ends[-1]

    def find(self, block: int) -> tuple[int, int]:
        """The corpus of a block, and its number there."""
        i = bisect_right(self.ends, block)
        return self.corpus_ids[i], block - (self.ends[i - 1] if i else 0)


@functools.lru_cache(maxsize=32)  # the current epoch of every corpus with a share
def _permutation(size: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    # NumPy ignores zeros at the end of a seed: a row's noise and segments, seeded by two numbers,
    # differ from permutations as long as the last of their three or four numbers is not 0.
    return np.random.default_rng(seed).permutation(size)


def _exact(name: str, share: float) -> Fraction:
    if not 0 <= share <= 1:
        raise UserError(name, got=share, allowed="a share from 0 to 1")
    return exact(share)


def _num_chosen(index: int, share: Fraction) -> int:
    """How many of 0 ... index - 1 are chosen. Integers only: exact in every prefix."""
    return index * share.numerator // share.denominator


def _is_chosen(index: int, share: Fraction) -> bool:
    return _num_chosen(index + 1, share) > _num_chosen(index, share)
