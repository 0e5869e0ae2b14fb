"""Compares sizes of a vocabulary before training (`neutral vocabulary`): the number of target
tokens for every size, and source documents whose tokens change."""

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
    """Number of documents of a source corpus whose tokens change with the new tokens."""

    name: str
    use: str
    """What the corpus is for in the run: train, evaluate or validate."""
    num_documents: int
    """Number of documents compared, from the beginning of the corpus."""
    num_changed: int


@dataclass(frozen=True)
class Exploration:
    """The effect of vocabularies of every size."""

    new_tokens: NewTokens
    """All tokens that the target text gives, up to `MOST_TOKENS`."""
    size: int
    """The size in the run file, or the recommended one if it sets none."""
    changed: tuple[ChangedDocuments, ...]
    """One for each source corpus of the run, with a vocabulary of that size."""


def explore(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_id: int,
    working: Working = without_display,
) -> Exploration:
    """Learn new tokens as a run would, for all sizes, and compare the tokens of its source text
    with and without them; arguments and errors as of `learned_vocabulary`."""
    found = learned_tokens(config, tokenizer, first_id=first_id, working=working)
    size = config.vocabulary.size or found.recommended_size
    vocabulary = Vocabulary(tokenizer, found.first(size), config.vocabulary.keep)
    return Exploration(found, size, changed_documents(vocabulary, config.data, working=working))


def changed_documents(
    vocabulary: Vocabulary, data: DataSettings, *, working: Working = without_display
) -> tuple[ChangedDocuments, ...]:
    """For each source corpus of a run, the number of documents whose tokens change."""
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
