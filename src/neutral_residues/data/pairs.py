"""Pairs -> tokens, of which those of the completion and after it are predicted.

The corpus' template writes a pair as one text. What follows the completion, the end of the template
and the end-of-text token, is predicted with it: it is how a model learns where to stop.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from neutral_residues.config.data import Corpus
from neutral_residues.data.documents import Pair
from neutral_residues.data.spans import (
    Encoder,
    PredictedTokens,
    Span,
    check_is_fast,
    encode_spans,
    with_end,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def pair_encoder(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Encoder[Pair]:
    """A function from pairs to the tokens of each, end-of-text included; a UserError for a
    tokenizer without offsets."""
    check_is_fast(tokenizer, "pairs")

    def encode(pairs: Sequence[Pair]) -> list[PredictedTokens]:
        texts, spans = zip(*(written(pair, corpus) for pair in pairs), strict=True)
        encoded = encode_spans(tokenizer, texts, [[span] for span in spans])
        return [with_end(text, end_of_text, predicted=True) for text in encoded]

    return encode


def written(pair: Pair, corpus: Corpus) -> tuple[str, Span]:
    """A pair as one text, and the span of it that is predicted."""
    before, _, rest = corpus.template.partition("{prompt}")
    between, _, after = rest.partition("{completion}")
    prompt = before + pair.prompt + between
    text = prompt + pair.completion + after
    return text, (len(prompt) if corpus.completion_only_loss else 0, len(text))


def predicted_bytes(pair: Pair, corpus: Corpus) -> int:
    """UTF-8 bytes of the texts that are predicted."""
    sides = pair[1:] if corpus.completion_only_loss else pair
    return sum(len(side.encode()) for side in sides)
