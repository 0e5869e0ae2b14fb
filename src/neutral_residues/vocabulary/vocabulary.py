"""The vocabulary of an extension: the backbone's tokenizer, the new tokens, and both as one
tokenizer.

    vocabulary.save(folder)            writes tokenizer files and vocabulary.json
    load_vocabulary(folder, base)      reads it; a UserError for another base tokenizer

`vocabulary.json` holds the merges, for each new token the ids of the backbone's tokens that spell
the same text, and the key of the tokenizer that the merges were learnt for. A digest shows damage.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from neutral_residues.config.choices import Keep
from neutral_residues.data.tokenise import tokenizer_key
from neutral_residues.errors import UserError
from neutral_residues.results.base import Part, read_part, write_part
from neutral_residues.vocabulary.learn import NewTokens
from neutral_residues.vocabulary.tokenizer import extended_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "vocabulary.json"


class VocabularyFile(Part):
    """The content of vocabulary.json."""

    format: Literal["neutral-residues/vocabulary"] = "neutral-residues/vocabulary"
    version: Literal[1] = 1
    base_tokenizer: str
    """Key of the tokenizer to which the merges are appended."""
    keep: Keep
    """The rule that protects source text."""
    new_tokens: NewTokens

    @classmethod
    def read(cls, path: Path) -> "VocabularyFile":
        """Read the file; a UserError if it is missing or damaged."""
        return read_part(cls, path, "vocabulary")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """New tokens for the tokenizer of a backbone.

    Attributes:
        base: the backbone's tokenizer.
        new_tokens: in the order of their ids, with the tokens that each saves.
        keep: the rule that protects source text.
    """

    base: "PreTrainedTokenizerBase"
    new_tokens: NewTokens
    keep: Keep

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The backbone's tokenizer with the new tokens."""
        return extended_tokenizer(self.base, self.new_tokens)

    @property
    def size(self) -> int:
        """Number of new tokens."""
        return len(self.new_tokens.tokens)

    @property
    def first_id(self) -> int:
        """Id of the first new token; the others follow without a gap."""
        return self.new_tokens.first_id

    @cached_property
    def pieces(self) -> list[list[int]]:
        """For each new token, the ids of the backbone's tokens that spell the same text."""
        return [list(token.pieces) for token in self.new_tokens.tokens]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, for plain `AutoTokenizer.from_pretrained`, and vocabulary.json."""
        self.tokenizer.save_pretrained(folder)
        key = tokenizer_key(self.base)
        file = VocabularyFile(base_tokenizer=key, keep=self.keep, new_tokens=self.new_tokens)
        write_part(folder / FILE, file)


def load_vocabulary(folder: Path, base: "PreTrainedTokenizerBase") -> Vocabulary | None:
    """The vocabulary saved in a folder; None if there is none.

    Raises:
        UserError: for a damaged file, and for another base tokenizer than it was made for.
    """
    if not (folder / FILE).is_file():
        return None
    file = VocabularyFile.read(folder / FILE)
    if file.base_tokenizer != (key := tokenizer_key(base)):
        raise UserError(
            f"the vocabulary in {folder} continues another tokenizer",
            got=f"tokenizer {key} of {base.name_or_path or 'this backbone'}",
            allowed=f"tokenizer {file.base_tokenizer}",
            do="load it with the backbone that it was trained on",
        )
    return Vocabulary(base, file.new_tokens, file.keep)
