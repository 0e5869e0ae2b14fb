"""Texts -> tokens, of which those in given spans are predicted; for chats and pairs.

A text is tokenised as a whole, so the tokens are the same as in use.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from neutral_residues.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Span = tuple[int, int]
"""Its first character, and the one after its last."""
Encoder = Callable[[Sequence[T]], "list[PredictedTokens]"]


class PredictedTokens(NamedTuple):
    """The tokens of one text."""

    token_ids: list[int]
    predicted: list[bool]  # for each token


def check_is_fast(tokenizer: "PreTrainedTokenizerBase", what: str) -> None:
    """Raise a UserError for a tokenizer without offsets (a slow one)."""
    if not tokenizer.is_fast:
        what, got = f"{what} need a fast tokenizer", type(tokenizer).__name__
        raise UserError(what, got=got, allowed="one of the tokenizers library")


def encode_spans(
    tokenizer: Any, texts: Sequence[str], spans: Sequence[Sequence[Span]]
) -> list[PredictedTokens]:
    """The tokens of each text; a token is predicted if any of it is inside one of the text's
    spans."""
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = tokenizer(list(texts), **options)
    encoded = []
    for token_ids, offsets, own in zip(
        found["input_ids"], found["offset_mapping"], spans, strict=True
    ):
        # Offsets may leave out the white space of a token, and then be empty.
        predicted = [
            any(end > first and start < last for first, last in own) for start, end in offsets
        ]
        encoded.append(PredictedTokens(token_ids, predicted))
    return encoded


def with_end(text: PredictedTokens, end_of_text: int, *, predicted: bool) -> PredictedTokens:
    """The text with the end-of-text token at its end, unless it already ends with it."""
    if text.token_ids[-1] == end_of_text:
        return text
    return PredictedTokens([*text.token_ids, end_of_text], [*text.predicted, predicted])
