"""Results of both models on one evaluation set: sums, and all ratios that reports show, which are
defined only here.

    bits per byte      nats / ln 2 / UTF-8 bytes       comparable across tokenizers
    token perplexity   exp(nats / tokens)              comparable only with the same tokenizer
    rise               bits per byte of the extended model minus those of the backbone: forgetting
                       on a source set, learning if below 0 on a target set
    rise in %          the rise in per cent of the backbone's bits per byte
    learning share     drop in bits per byte, as a share of that of full fine-tuning
    neutral share      share of the tokens on which every gate is exactly 0
    closed gates       share of all (token, layer) gates that are exactly 0; should be high on a
                       source set and low on a target set
    KL                 KL(backbone || extended) in nats per token, if it was measured

Sums are stored, and divided once. The JSON of a `SetResult` also has its ratios, for readers
without this code (`PartWithRatios`). No torch.
"""

import math
from typing import Annotated, Literal, get_args

from pydantic import Field, computed_field

from neutral_residues.config.data import Role
from neutral_residues.results.base import Part, PartWithRatios

TokenKind = Literal[
    "end of text",
    "partial characters",
    "white space",
    "punctuation",
    "digits",
    "other script",
    "names",
    "frequent words",
    "rare words",
]
"""Kinds of tokens, of which each token has one; the rules are in `evaluation/token_kinds.py`."""
KINDS: tuple[TokenKind, ...] = get_args(TokenKind)


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Bits per byte of a text, from its total negative log-likelihood in nats and its number of
    UTF-8 bytes."""
    return nats / math.log(2) / num_bytes


def rise_percent(backbone: float, extended: float) -> float:
    """Rise of a loss from backbone to extended model, in per cent of the backbone's; on source text
    this is forgetting.

    Args:
        backbone: nats or bits per byte under the backbone, above 0.
        extended: the same quantity under the extended model, on the same text.
    """
    return 100 * (extended - backbone) / backbone


def learning_share(*, backbone: float, extended: float, finetuned: float) -> float | None:
    """Drop in bits per byte on a target set, as a share of the drop of full fine-tuning.

    Args:
        backbone, extended, finetuned: bits per byte of the three models.

    Returns:
        The share, 1 if as much was learnt; None if fine-tuning did not lower bits per byte.
    """
    drop = backbone - finetuned
    return (backbone - extended) / drop if drop > 0 else None


WRONG: dict[Role, str] = {"source": "open", "target": "closed"}
"""The state of a gate that is wrong for a text of each role: open (not 0) on source text, closed
(exactly 0) on target text."""


def wrong_share(gates_zero: float, role: Role) -> float:
    """Share of the gates in the wrong state (see `WRONG`), given the share that is exactly 0."""
    return gates_zero if role == "target" else 1 - gates_zero


class TokenClass(Part):
    """Contribution of one kind of tokens to the bits per byte of a set. Those of all kinds add up
    to the bits per byte of the set."""

    kind: TokenKind
    """The kind of tokens."""
    num_types: int = Field(ge=1)
    """Number of different tokens of this kind in the set."""
    num_tokens: int = Field(ge=1)
    """Number of their occurrences."""
    backbone: float = Field(ge=0)
    """Their bits under the backbone, divided by all bytes of the set."""
    extended: float = Field(ge=0)
    """Their bits under the extended model, divided by all bytes of the set."""


class TokenChange(Part):
    """One token type and its contribution to the change of a set."""

    text: str
    """Text of the token."""
    num_tokens: int = Field(ge=1)
    """How often it occurs in the set."""
    change: float
    """Sum over its occurrences of bits, extended minus backbone, divided by all bytes of the
    set."""


class DocumentChange(Part):
    """The change of one document."""

    number: int = Field(ge=0)
    """Index of the document in the set, from 0."""
    num_bytes: int = Field(ge=1)
    """UTF-8 bytes of its text."""
    backbone: float = Field(ge=0)
    """Bits per byte under the backbone."""
    extended: float = Field(ge=0)
    """Bits per byte under the extended model."""
    excerpt: str
    """Beginning of its text."""


class Breakdown(Part):
    """Why the bits per byte of a set changed: contributions by token and by document."""

    classes: list[TokenClass]
    """Contribution of each kind of tokens that occurs in the set."""
    num_types: int = Field(ge=1)
    """Number of different tokens (types) in the set."""
    num_carriers: int = Field(ge=0)
    """Smallest number of types that make up half of the sum of all absolute changes (carriers)."""
    carriers_share: float = Field(ge=0, le=1)
    """Share of the set's tokens that are carriers."""
    carriers: list[TokenChange]
    """The first carriers, largest change first."""
    is_concentrated: bool
    """Whether carriers are so few and so rare that the bits per byte of the set say little about
    most of its text."""
    documents: list[DocumentChange]
    """The documents whose bits per byte rose most (or fell least), worst first."""


LayerNumber = Annotated[int, Field(ge=0)] | Literal["head"]
"""Index of a transformer layer, or the output head."""


class LayerResult(Part):
    """Gate and residue of one extended layer on the tokens of a set."""

    layer: LayerNumber
    """Index of the transformer layer, or the output head."""
    gates_zero: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens on which its gate is exactly 0; null without a block gate."""
    residue_rms: float = Field(ge=0)
    """Root mean square, over tokens and hidden size, of its residue g(x) * A(x)."""


class EvaluationSet(Part):
    """A text that is measured. Results are only comparable on equal sets."""

    role: Role
    """source: text that the backbone already models. target: text that it shall learn."""
    key: str
    """Hash of the text as tokens of the backbone's tokenizer."""
    num_bytes: int = Field(ge=1)
    """Number of UTF-8 bytes."""
    num_tokens: int = Field(ge=1)
    """Number of scored tokens, including end-of-text tokens."""
    backbone_tokens: int | None = Field(default=None, ge=1)
    """Number of scored tokens in the backbone's tokenizer, if new tokens of the extended model
    change the tokenisation of this text; else null: it is `num_tokens`."""
    num_documents: int = Field(ge=1)
    """Number of documents."""


class SetResult(EvaluationSet, PartWithRatios):
    """Results of backbone and extended model on the same text, as sums over all scored tokens."""

    backbone_nats: float
    """Total negative log-likelihood under the backbone, in nats."""
    extended_nats: float
    """Total negative log-likelihood under the extended model, in nats."""
    num_neutral_tokens: int | None = None
    """Number of tokens that are predicted with all gates exactly 0; null without block gates. The
    gates for a token are those at the token before it."""
    kl_nats: float | None = None
    """KL(backbone || extended) in nats, summed over tokens; null if not measured."""
    layers: list[LayerResult] = Field(default=[])
    """Gates and residues of each extended layer; empty for a method without residues."""
    breakdown: Breakdown | None = None
    """Why the bits per byte changed; null if not computed."""

    @computed_field
    @property
    def backbone_bits_per_byte(self) -> float:
        return bits_per_byte(self.backbone_nats, self.num_bytes)

    @computed_field
    @property
    def extended_bits_per_byte(self) -> float:
        return bits_per_byte(self.extended_nats, self.num_bytes)

    @computed_field
    @property
    def backbone_token_perplexity(self) -> float:
        return math.exp(self.backbone_nats / (self.backbone_tokens or self.num_tokens))

    @computed_field
    @property
    def extended_token_perplexity(self) -> float:
        return math.exp(self.extended_nats / self.num_tokens)

    @computed_field
    @property
    def rise_bits_per_byte(self) -> float:
        """Bits per byte, extended minus backbone: forgetting on a source set; learning if below 0
        on a target set."""
        return self.extended_bits_per_byte - self.backbone_bits_per_byte

    @computed_field
    @property
    def rise_percent(self) -> float:
        """The rise in per cent of the backbone's bits per byte."""
        return rise_percent(self.backbone_nats, self.extended_nats)

    @computed_field
    @property
    def neutral_share(self) -> float | None:
        """Share of the tokens on which every gate is exactly 0; None without block gates."""
        neutral = self.num_neutral_tokens
        return None if neutral is None else neutral / self.num_tokens

    @computed_field
    @property
    def closed_gates_share(self) -> float | None:
        """Share of all (token, layer) gates that are exactly 0; None without block gates."""
        shares = [layer.gates_zero for layer in self.layers if layer.gates_zero is not None]
        return sum(shares) / len(shares) if shares else None

    @computed_field
    @property
    def kl_nats_per_token(self) -> float | None:
        """KL(backbone || extended) in nats per token; None if not measured."""
        return None if self.kl_nats is None else self.kl_nats / self.num_tokens
