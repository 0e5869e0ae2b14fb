"""From sums to the numbers that people read: bits per byte, forgetting, learning, neutrality.

`evaluate.py` adds up nats, bytes and tokens of each evaluation set (`SetScore`). Here they are
divided, once:

    bits per byte      nats / ln 2 / UTF-8 bytes          compares across tokenizers and languages
    token perplexity   exp(nats / tokens)                 compares only within one tokenizer
    forgetting         bits per byte, extended minus backbone, on a source set
    learning           bits per byte, backbone minus extended, on a target set
    neutrality         share of tokens on which every gate is exactly 0; mean KL(backbone || extended) in nats per token

`metrics` gives them names, units and directions for the record. No torch here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neutral_residues.config.run import Role
from neutral_residues.results.record import Direction, Metric, Of


@dataclass(frozen=True, eq=False)
class TokenSums:
    """Where the nats of an evaluation set fall: by token type (V of the vocabulary) and by document
    (D). All float64.

    Attributes:
        ends_D: where each document ends in the stream.
        counts_V: how often each type is scored.
        extended_V, backbone_V: nats of each type under either model; the second is zero where it
            was not run.
        extended_D, backbone_D: the same of each document.
    """

    ends_D: NDArray[np.int64]
    counts_V: NDArray[np.int64]
    extended_V: NDArray[np.float64]
    backbone_V: NDArray[np.float64]
    extended_D: NDArray[np.float64]
    backbone_D: NDArray[np.float64]

    @classmethod
    def empty(cls, vocabulary: int, ends_D: NDArray[np.int64]) -> "TokenSums":
        """Nothing added yet."""
        types, documents = (np.zeros((2, n)) for n in (vocabulary, len(ends_D)))
        return cls(ends_D, np.zeros(vocabulary, dtype=np.int64), *types, *documents)

    def add(
        self,
        first: int,
        targets_K: NDArray[Any],
        extended_K: NDArray[Any],
        backbone_K: NDArray[Any] | None,
    ) -> None:
        """Add the nats of K tokens that follow each other in the stream, `first` being the place of
        the first."""
        document_K = np.searchsorted(
            self.ends_D, np.arange(first, first + len(targets_K)), side="right"
        )
        np.add.at(self.counts_V, targets_K, 1)
        for by_type, by_document, nats_K in (
            (self.extended_V, self.extended_D, extended_K),
            (self.backbone_V, self.backbone_D, backbone_K),
        ):
            if nats_K is not None:
                np.add.at(by_type, targets_K, nats_K)
                np.add.at(by_document, document_K, nats_K)


@dataclass(frozen=True)
class SetScore:
    """Sums over one evaluation set, and the ratios people read.

    Attributes:
        num_tokens: tokens scored, end-of-text tokens included.
        num_bytes: UTF-8 bytes of the same documents.
        extended_nats: nats of these tokens under the extended model.
        backbone_nats: the same under the backbone; None where it was not run.
        kl_nats: KL(backbone || extended), summed over tokens; None where the backbone was not run.
        num_neutral_tokens: tokens at whose position every layer's gate is exactly 0; None without a
            block gate. The position of a token is where it is predicted: that of the token before
            it.
        layers: number of each extended layer; empty for a method without residues.
        gates_zero_by_layer: tokens on which that layer's gate is exactly 0; empty without a block
            gate.
        residue_square_sum_by_layer: sum over tokens and width of (g(x) * A(x))^2.
        hidden: width D of the residues; 0 without any.
        by_token: the same nats by token type and by document.
    """

    name: str
    role: Role
    num_tokens: int
    num_bytes: int
    num_documents: int
    extended_nats: float
    backbone_nats: float | None
    kl_nats: float | None
    num_neutral_tokens: int | None
    layers: tuple[int, ...] = ()
    gates_zero_by_layer: tuple[int, ...] = ()
    residue_square_sum_by_layer: tuple[float, ...] = ()
    hidden: int = 0
    by_token: TokenSums | None = field(default=None, compare=False, repr=False)

    @property
    def extended_bits_per_byte(self) -> float:
        return bits_per_byte(self.extended_nats, self.num_bytes)

    @property
    def backbone_bits_per_byte(self) -> float | None:
        return (
            None
            if self.backbone_nats is None
            else bits_per_byte(self.backbone_nats, self.num_bytes)
        )

    @property
    def extended_perplexity(self) -> float:
        return math.exp(self.extended_nats / self.num_tokens)

    @property
    def backbone_perplexity(self) -> float | None:
        return (
            None if self.backbone_nats is None else math.exp(self.backbone_nats / self.num_tokens)
        )

    @property
    def neutral_share(self) -> float | None:
        """Share of tokens on which every gate is exactly 0."""
        return (
            None if self.num_neutral_tokens is None else self.num_neutral_tokens / self.num_tokens
        )

    @property
    def rise_bits_per_byte(self) -> float | None:
        """Extended minus backbone: forgetting on a source set; below 0 is learning."""
        backbone = self.backbone_bits_per_byte
        return None if backbone is None else self.extended_bits_per_byte - backbone

    @property
    def rise_percent(self) -> float | None:
        """The same in per cent of the backbone's bits per byte."""
        if self.backbone_nats is None:
            return None
        return 100 * (self.extended_nats - self.backbone_nats) / self.backbone_nats


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """A sum of nats over text of so many UTF-8 bytes."""
    return nats / math.log(2) / num_bytes


def learning_share(
    *, extended_bits_per_byte: float, backbone_bits_per_byte: float, finetuned_bits_per_byte: float
) -> float | None:
    """Which part of full fine-tuning's drop on a target set was learnt, 1 being all; None if it
    gained nothing."""
    drop = backbone_bits_per_byte - finetuned_bits_per_byte
    return (backbone_bits_per_byte - extended_bits_per_byte) / drop if drop > 0 else None


def metrics(scores: Sequence[SetScore]) -> list[Metric]:
    """All numbers of these sets, named, for the record (see `record.Metric`)."""
    return [
        metric
        for score in scores
        for metric in (*_losses(score), *_changes(score), *_residues(score))
    ]


def _metric(
    score: SetScore,
    name: str,
    of: Of,
    value: float,
    unit: str,
    direction: Direction,
    layer: int | None = None,
) -> Metric:
    return Metric(
        name=name,
        of=of,
        set=score.name,
        role=score.role,
        layer=layer,
        value=value,
        unit=unit,
        direction=direction,
        num_bytes=score.num_bytes,
        num_tokens=score.num_tokens,
    )


def _losses(score: SetScore) -> list[Metric]:
    found = [
        _metric(
            score, "bits_per_byte", "extended", score.extended_bits_per_byte, "bits/byte", "lower"
        ),
        _metric(
            score, "token_perplexity", "extended", score.extended_perplexity, "perplexity", "lower"
        ),
    ]
    if score.backbone_bits_per_byte is not None and score.backbone_perplexity is not None:
        found += [
            _metric(
                score,
                "bits_per_byte",
                "backbone",
                score.backbone_bits_per_byte,
                "bits/byte",
                "lower",
            ),
            _metric(
                score,
                "token_perplexity",
                "backbone",
                score.backbone_perplexity,
                "perplexity",
                "lower",
            ),
        ]
    return found


def _changes(score: SetScore) -> list[Metric]:
    """What the extension changed: needs the backbone's side."""
    rise, kl = score.rise_bits_per_byte, score.kl_nats
    if rise is None or score.rise_percent is None or kl is None:
        return []
    is_source = score.role == "source"
    if is_source:
        found = [
            _metric(score, "forgetting", "difference", rise, "bits/byte", "lower"),
            _metric(
                score, "forgetting_percent", "difference", score.rise_percent, "percent", "lower"
            ),
        ]
    else:
        found = [_metric(score, "learning_bits", "difference", -rise, "bits/byte", "higher")]
    # Away from the backbone is bad on the source; on the target it is the point, and neither good
    # nor bad by itself.
    direction: Direction = "lower" if is_source else "none"
    return [
        *found,
        _metric(
            score, "kl_nats_per_token", "difference", kl / score.num_tokens, "nats/token", direction
        ),
    ]


def _residues(score: SetScore) -> list[Metric]:
    is_source = score.role == "source"
    silent: Direction = "higher" if is_source else "none"
    small: Direction = "lower" if is_source else "none"
    found = []
    if score.neutral_share is not None:
        found.append(
            _metric(score, "neutral_tokens", "extended", score.neutral_share, "share", silent)
        )
    for layer, zeros in zip(
        score.layers, score.gates_zero_by_layer, strict=False
    ):  # empty without a block gate
        found.append(
            _metric(
                score, "gates_zero", "extended", zeros / score.num_tokens, "share", silent, layer
            )
        )
    for layer, squares in zip(score.layers, score.residue_square_sum_by_layer, strict=True):
        rms = math.sqrt(squares / (score.num_tokens * score.hidden)) if score.hidden else 0.0
        found.append(_metric(score, "residue_rms", "extended", rms, "rms", small, layer))
    return found
