"""Explores vocabularies before anything is trained: target tokens for every size, and source
documents whose tokens change."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from neutral_residues.config.data import DataSettings
from neutral_residues.config.run import RunConfig
from neutral_residues.data.encode import batches, encoder
from neutral_residues.data.tokenise import end_of_text_id
from neutral_residues.vocabulary.learn import NewTokens
from neutral_residues.vocabulary.run_vocabulary import learned_tokens
from neutral_residues.vocabulary.texts import (
    SOURCE_BYTES,
    Working,
    first_documents,
    without_display,
)
from neutral_residues.vocabulary.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChangedDocuments:
    """How many documents of a source corpus get different tokens."""

    name: str
    use: str
    """What the corpus is for in the run: train, evaluate or validate."""
    num_documents: int
    """Those that were looked at, from the beginning."""
    num_changed: int


@dataclass(frozen=True)
class Exploration:
    """The effect of vocabularies of every size."""

    new_tokens: NewTokens
    """As many as the target text gives, up to `MOST_TOKENS`."""
    size: int
    """Of the run file, else the recommended one."""
    changed: tuple[ChangedDocuments, ...]
    """Every source corpus of the run, with a vocabulary of that size."""


def explore(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_id: int,
    working: Working = without_display,
) -> Exploration:
    """Learn new tokens as for a run, for all sizes, and tokenise all of its source text with them;
    arguments and errors as in `learned_vocabulary`."""
    found = learned_tokens(config, tokenizer, first_id=first_id, working=working)
    size = config.vocabulary.size or found.recommended_size
    vocabulary = Vocabulary(tokenizer, found.first(size), config.vocabulary.keep)
    return Exploration(found, size, changed_documents(vocabulary, config.data, working=working))


def changed_documents(
    vocabulary: Vocabulary, data: DataSettings, *, working: Working = without_display
) -> tuple[ChangedDocuments, ...]:
    """Tokenise every source corpus of a run with and without the new tokens and compare."""
    uses = {"train": data.train, "evaluate": data.evaluate, "validate": data.validate_on}
    end = end_of_text_id(vocabulary.base, data.end_of_text)
    old, new = encoder(vocabulary.base, end), encoder(vocabulary.tokenizer, end)
    found = []
    for use, corpora in uses.items():
        for corpus in (corpus for corpus in corpora if corpus.role == "source"):
            num_documents = num_changed = 0
            with working(f"comparing {corpus.name}", SOURCE_BYTES) as advance:
                for texts in batches(first_documents(corpus, SOURCE_BYTES)):
                    pairs = zip(old(texts), new(texts), strict=True)
                    num_documents += len(texts)
                    num_changed += sum(before != after for before, after in pairs)
                    advance(sum(len(text.encode()) for text in texts))
            found.append(ChangedDocuments(corpus.name, use, num_documents, num_changed))
    return tuple(found)
