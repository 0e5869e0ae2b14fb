"""What was measured on one evaluation set: sums, and every ratio that people read, defined here and
nowhere else.

    bits per byte      nats / ln 2 / UTF-8 bytes       compares across tokenizers and languages
    token perplexity   exp(nats / tokens)              compares only within one tokenizer
    rise               bits per byte, extended minus backbone: forgetting on a source set; below 0,
                       on a target set, learning
    rise in %          the same in per cent of the backbone's bits per byte
    learning share     part of full fine-tuning's drop in bits per byte that was learnt
    neutral share      part of the tokens on which every gate is exactly 0
    closed gates       part of all (token, layer) gates that are exactly 0: many on a source set and
                       few on a target set are good
    KL                 KL(backbone || extended) in nats per token, where it was asked for

Sums are stored; they are divided once. The JSON of a `SetResult` also has its ratios, for
readers without this code (`PartWithRatios`). No torch.
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
"""Kinds of tokens, each token being of one; `evaluation/token_kinds.py` says by what rule."""
KINDS: tuple[TokenKind, ...] = get_args(TokenKind)


def bits_per_byte(nats: float, num_bytes: float) -> float:
    """Bits per byte of text whose `num_bytes` UTF-8 bytes cost `nats` in all."""
    return nats / math.log(2) / num_bytes


def rise_percent(backbone: float, extended: float) -> float:
    """How much more the extended model needs, in per cent of the backbone: forgetting on source
    text.

    Args:
        backbone: nats or bits per byte under the backbone, above 0.
        extended: the same quantity of the same text under the extended model.
    """
    return 100 * (extended - backbone) / backbone


def learning_share(*, backbone: float, extended: float, finetuned: float) -> float | None:
    """Part of full fine-tuning's drop in bits per byte on a target set that was learnt; 1 is all.

    Args:
        backbone, extended, finetuned: bits per byte of the three models.

    Returns:
        None if fine-tuning did not gain anything.
    """
    drop = backbone - finetuned
    return (backbone - extended) / drop if drop > 0 else None


WRONG: dict[Role, str] = {"source": "open", "target": "closed"}
"""Which gates are on the wrong side, as far as one can tell by the text: those that are not 0 on
source text, and those that are exactly 0 on target text."""


def wrong_share(gates_zero: float, role: Role) -> float:
    """Share of the gates on the wrong side (see `WRONG`), of a share that is exactly 0."""
    return gates_zero if role == "target" else 1 - gates_zero


class TokenClass(Part):
    """What the tokens of one kind contribute to the bits per byte of a set; they add up to it."""

    kind: TokenKind
    """Which kind."""
    num_types: int = Field(ge=1)
    """How many different tokens of that kind occur."""
    num_tokens: int = Field(ge=1)
    """How often they occur together."""
    backbone: float = Field(ge=0)
    """Their bits under the backbone, over all bytes of the set."""
    extended: float = Field(ge=0)
    """The same under the extended model."""


class TokenChange(Part):
    """One token and what it changed."""

    text: str
    """The token as text."""
    num_tokens: int = Field(ge=1)
    """How often it occurs in the set."""
    change: float
    """Its bits, extended minus backbone, over all bytes of the set."""


class DocumentChange(Part):
    """One document and how much worse it got."""

    number: int = Field(ge=0)
    """Which document of the set, from 0."""
    num_bytes: int = Field(ge=1)
    """UTF-8 bytes of its text."""
    backbone: float = Field(ge=0)
    """Bits per byte under the backbone."""
    extended: float = Field(ge=0)
    """Bits per byte under the extended model."""
    excerpt: str
    """How it begins."""


class Breakdown(Part):
    """Why the bits per byte of a set moved."""

    classes: list[TokenClass]
    """What each kind of token contributes; kinds that do not occur are left out."""
    num_types: int = Field(ge=1)
    """Different tokens that occur in the set."""
    num_carriers: int = Field(ge=0)
    """How many of them carry half of all change, rises and falls alike; the fewest that do."""
    carriers_share: float = Field(ge=0, le=1)
    """Share of the set's tokens that these are."""
    carriers: list[TokenChange]
    """The first of them, largest change first."""
    is_concentrated: bool
    """Whether so few, so rare tokens carry it that the set's number says little of its text."""
    documents: list[DocumentChange]
    """Documents whose bits per byte rose most (or fell least), the worst first."""


LayerNumber = Annotated[int, Field(ge=0)] | Literal["head"]
"""Number of a transformer layer, or the output head."""


class LayerResult(Part):
    """What one extended layer did on the tokens of a set."""

    layer: LayerNumber
    """Number of the transformer layer, or the output head."""
    gates_zero: float | None = Field(default=None, ge=0, le=1)
    """Share of the tokens on which its gate is exactly 0; null without a block gate."""
    residue_rms: float = Field(ge=0)
    """Root mean square, over tokens and width, of what it adds: g(x) * A(x)."""


class EvaluationSet(Part):
    """A text that is measured: two records compare only where these agree."""

    role: Role
    """source: what the backbone knows. target: what it was to learn."""
    key: str
    """Hash of its tokens: the same text under the same tokenizer, the backbone's."""
    num_bytes: int = Field(ge=1)
    """UTF-8 bytes of text."""
    num_tokens: int = Field(ge=1)
    """Tokens, end-of-text included."""
    backbone_tokens: int | None = Field(default=None, ge=1)
    """Tokens of the backbone, where the extended model has a vocabulary of its own that cuts the
    text otherwise; else null, and there are as many."""
    num_documents: int = Field(ge=1)
    """Documents."""


class SetResult(EvaluationSet, PartWithRatios):
    """Backbone and extended model on the same text: sums over all its tokens."""

    backbone_nats: float
    """Nats of the tokens under the backbone."""
    extended_nats: float
    """Nats of the tokens under the extended model."""
    num_neutral_tokens: int | None = None
    """Tokens at whose position every layer's gate is exactly 0; null without block gates. A token's
    position is where it is predicted: that of the token before it."""
    kl_nats: float | None = None
    """KL(backbone || extended), summed over the tokens; null where it was not asked for."""
    layers: list[LayerResult] = Field(default=[])
    """Gates and residues of each extended layer; empty for a method without residues."""
    breakdown: Breakdown | None = None
    """Why the bits per byte moved; null where that was not asked for."""

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
        """Extended minus backbone: forgetting on a source set; below 0 is learning."""
        return self.extended_bits_per_byte - self.backbone_bits_per_byte

    @computed_field
    @property
    def rise_percent(self) -> float:
        """The same in per cent of the backbone's bits per byte."""
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
        """KL(backbone || extended) per token; None where it was not asked for."""
        return None if self.kl_nats is None else self.kl_nats / self.num_tokens
