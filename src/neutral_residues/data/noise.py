"""Source rows made strange: a share of them gets random tokens, so that gates learn to open for the
target alone.

Trained on clean source rows only, a gate learns "not this source text" and opens for any other
text, English of another genre too. On a noised row a random share of the tokens, from none to all,
is replaced by tokens drawn from the whole vocabulary; its local loss counts as ever, its
language-modelling loss does not (there is nothing to predict). Ours, not the paper's; LAB.md has
what it does.

Which rows, which tokens and what replaces them is a pure function of the seed and the row's number,
as the order of rows is.
"""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from neutral_residues.data.mixture import Mixture, Row
from neutral_residues.errors import UserError


class NoisyRow(Row):
    """A row of `Mixture`, and whether it was noised."""

    noised: bool
    """True: random tokens are in it, so it has a local loss but no language-modelling loss."""


class NoisedMixture(Dataset[NoisyRow]):
    """The rows of a mixture, with a share of the source rows noised.

    Args:
        rows: the mixture.
        share: of the source rows, exact in every prefix to within one row; 0 leaves all as they
            are.
        vocabulary: random tokens are drawn from 0 ... vocabulary - 1.
        end_of_text: the token that is never drawn.
    """

    def __init__(self, rows: Mixture, *, share: float, vocabulary: int, end_of_text: int) -> None:
        if not 0 <= share <= 1:
            raise UserError("source_noise", got=share, allowed="a share from 0 to 1")
        self.rows = rows
        self.share = Fraction(str(share))
        self.drawn = np.delete(np.arange(vocabulary), end_of_text)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> NoisyRow:
        row = self.rows[index]
        if not self.is_noised(index):
            return {**row, "noised": False}
        return {**row, "input_ids": self._noise(row["input_ids"], index), "noised": True}

    def is_noised(self, index: int) -> bool:
        """Whether row `index` is a noised source row."""
        if self.rows.role(index) != "source":
            return False
        count = self.rows.rows_before(index, "source")
        return (count + 1) * self.share // 1 > count * self.share // 1

    def _noise(self, tokens_T: Tensor, index: int) -> Tensor:
        random = np.random.default_rng((self.rows.seed, index))
        replaced_T = random.random(len(tokens_T)) < random.random()
        noise_T = torch.from_numpy(random.choice(self.drawn, len(tokens_T)))
        return torch.where(torch.from_numpy(replaced_T), noise_T, tokens_T)
