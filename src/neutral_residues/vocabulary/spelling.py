"""The text of the tokens of a BPE tokenizer, as UTF-8 bytes; and which tokenizers can take new
merges."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from neutral_residues.data.encode import plain_backend
from neutral_residues.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTE_OF = {char: byte for byte, char in bytes_to_unicode().items()}
"""The character that stands for a byte in byte-level BPE -> that byte."""
SPACE = "▁"
"""How SentencePiece-like tokenizers write a space."""
SPACES = frozenset({SPACE, "Ġ"})
"""How tokenizers write a space."""
BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
"""A byte of a character that a SentencePiece-like tokenizer has no token for."""


@dataclass(frozen=True)
class Spelling:
    """The tokens of a tokenizer as its merges write them, and as text.

    Attributes:
        strings: id -> token, of all tokens, added ones too.
        is_byte_level: whether each character of a token stands for a byte.
        single_bytes: id -> byte, of the tokens that a SentencePiece-like tokenizer has for bytes of
            characters that it does not know.
        unknown: ids of the unknown token, none or one.
    """

    strings: dict[int, str]
    is_byte_level: bool = True
    single_bytes: Mapping[int, bytes] = field(default_factory=dict)
    unknown: frozenset[int] = frozenset()

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Spelling":
        """The spelling of a tokenizer; a UserError if it cannot take new merges."""
        content = bpe_content(tokenizer)
        model = content["model"]
        strings = {id: token for token, id in tokenizer.get_vocab().items()}
        found = ((id, BYTE_TOKEN.fullmatch(token)) for id, token in strings.items())
        single = {id: bytes([int(match[1], 16)]) for id, match in found if match}
        return cls(
            strings=strings,
            is_byte_level=_holds_byte_level([content["normalizer"], content["pre_tokenizer"]]),
            single_bytes=single if model["byte_fallback"] else {},
            unknown=frozenset(id for id, token in strings.items() if token == model["unk_token"]),
        )

    def bytes_of(self, token: str) -> bytes:
        """The UTF-8 bytes that a token stands for; they may begin or end inside a character."""
        # Added tokens are stored as plain text.
        if self.is_byte_level and all(char in BYTE_OF for char in token):
            return bytes(BYTE_OF[char] for char in token)
        return token.replace(SPACE, " ").encode()

    def text_of(self, token: str) -> str:
        """A token for people to read."""
        return self.bytes_of(token).decode(errors="replace")

    def text_of_word(self, word: Iterable[int]) -> str:
        """The text of adjacent tokens; empty for the unknown token."""
        known = (id for id in word if id not in self.unknown)
        parts = (self.single_bytes.get(id) or self.bytes_of(self.strings[id]) for id in known)
        return b"".join(parts).decode(errors="replace")

    @cached_property
    def never_merged(self) -> frozenset[int]:
        """Ids of tokens that may not be merged, because they are not text."""
        return self.unknown | self.single_bytes.keys()

    @cached_property
    def begin_with_space(self) -> frozenset[int]:
        """Ids of the tokens that begin with a space."""
        return frozenset(id for id, token in self.strings.items() if token[:1] in SPACES)

    @cached_property
    def end_in_space(self) -> frozenset[int]:
        """Ids of the tokens that end in a space."""
        return frozenset(id for id, token in self.strings.items() if token[-1:] in SPACES)


def bpe_content(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The content of a tokenizer's tokenizer.json; a UserError unless it is BPE to which merges can
    be appended."""
    allowed = "a fast tokenizer with BPE merges"
    if not tokenizer.is_fast:
        what, got = "the tokenizer takes no new tokens", f"{type(tokenizer).__name__}, a slow one"
        raise UserError(what, got=got, allowed=allowed)
    content: dict[str, Any] = json.loads(plain_backend(tokenizer).to_str())
    model = content["model"]
    if model["type"] != "BPE":
        got = f"{model['type']}, which has no merges"
        raise UserError("the tokenizer takes no new tokens", got=got, allowed=allowed)
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model[setting]:
            what, got = "the tokenizer takes no new tokens", f"{setting}: {model[setting]!r}"
            raise UserError(what, got=got, allowed=f"{allowed} and no {setting}")
    return content


def _holds_byte_level(part: Any) -> bool:
    """Whether a byte-level step is anywhere in a tokenizer's settings."""
    if isinstance(part, dict):
        return part.get("type") == "ByteLevel" or _holds_byte_level(list(part.values()))
    return isinstance(part, list) and any(map(_holds_byte_level, part))
