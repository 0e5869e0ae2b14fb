"""The vocabulary of a run: learnt once from its training text, then read from the cache."""

from functools import partial
from typing import TYPE_CHECKING, Any

from neutral_residues.config.run import RunConfig, VocabularySettings
from neutral_residues.data.tokenise import tokenizer_key
from neutral_residues.digest import from_cache, short_hash
from neutral_residues.errors import UserError
from neutral_residues.files import default_cache_folder, locked
from neutral_residues.results.base import write_part
from neutral_residues.vocabulary.keep import may_merge
from neutral_residues.vocabulary.learn import NewTokens, learn
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.texts import (
    SCRIPT_BYTES,
    SOURCE_BYTES,
    TARGET_BYTES,
    TrainingTexts,
    Working,
    without_display,
)
from neutral_residues.vocabulary.vocabulary import Vocabulary, VocabularyFile
from neutral_residues.vocabulary.words import WordCounts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 2
"""Part of the cache key; increase it when the same texts give other tokens."""
MOST_TOKENS = 16_000
"""Number of tokens that are learnt at once; a smaller vocabulary is the first of them."""
MOST_SINGLE_BYTES = 0.5
"""Largest share of the target's tokens that may be single bytes of characters that the tokenizer
does not know: merges never join these, so little would be gained."""


def learned_vocabulary(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_id: int,
    working: Working = without_display,
) -> Vocabulary | None:
    """The vocabulary that a run file asks for, or None with `size: 0`.

    Args:
        tokenizer: the backbone's tokenizer.
        first_id: id of the first new token: the number of rows of the backbone's embeddings.
        working: progress display.

    Raises:
        UserError: for a tokenizer that takes no new merges, text that cannot be read, a target in
            the source's script with `keep: script`, or a size of more tokens than the target text
            gives.
    """
    settings = config.vocabulary
    if settings.size == 0:
        return None
    found = learned_tokens(config, tokenizer, first_id=first_id, working=working)
    return Vocabulary(tokenizer, found.first(settings.size), settings.keep)


def learned_tokens(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_id: int,
    working: Working = without_display,
) -> NewTokens:
    """The tokens learnt from the target text of a run, up to `MOST_TOKENS` or, if larger, the size
    in the run file; from the cache if possible. Arguments and errors as of `learned_vocabulary`."""
    if first_id <= (largest := max(tokenizer.get_vocab().values())):
        what = "the tokenizer has more tokens than the model has rows for"
        raise UserError(what, got=f"{largest + 1:,} and {first_id:,}", do="check the model folder")
    settings, texts = config.vocabulary, TrainingTexts.of(config.data)
    key, most = tokenizer_key(tokenizer), max(settings.size, MOST_TOKENS)
    recipe = short_hash(VERSION, texts.key, key, settings.keep, first_id, most)
    path = (config.data.cache or default_cache_folder()) / f"vocabulary-{recipe}.json"
    with locked(path.with_name(f".{path.name}.lock"), on_wait=lambda: None):
        cached = from_cache(path, lambda: VocabularyFile.read(path))
        if cached is not None:
            found = cached.new_tokens
        else:
            options: dict[str, Any] = {"size": most, "first_id": first_id, "working": working}
            found = _learned(texts, tokenizer, settings, **options)
            file = VocabularyFile(base_tokenizer=key, keep=settings.keep, new_tokens=found)
            write_part(path, file)
    if len(found.tokens) < settings.size:
        raise UserError(
            "vocabulary.size is more than the target text gives",
            got=settings.size,
            allowed=f"at most {len(found.tokens):,} with keep: {settings.keep}",
            do="lower it, or give more target text",
        )
    return found


def _learned(
    texts: TrainingTexts,
    tokenizer: "PreTrainedTokenizerBase",
    settings: VocabularySettings,
    *,
    size: int,
    first_id: int,
    working: Working,
) -> NewTokens:
    spelling = Spelling.of(tokenizer)
    words = partial(texts.words, tokenizer=tokenizer, spelling=spelling, working=working)
    target = words("target", TARGET_BYTES)
    _check_characters(target, spelling)
    source = words("source", SCRIPT_BYTES if settings.keep == "script" else SOURCE_BYTES)
    allowed = may_merge(settings.keep, target=target, source=source, spelling=spelling)
    with working("learning tokens", size) as advance:
        return learn(
            target, spelling, size=size, first_id=first_id, may_merge=allowed, advance=advance
        )


def _check_characters(target: WordCounts, spelling: Spelling) -> None:
    """Raise a UserError if too many tokens of the text are single bytes, which are never merged."""
    single = sum(
        count for word, count in target.counts.items() for id in word if id in spelling.never_merged
    )
    if single > MOST_SINGLE_BYTES * target.num_tokens:
        raise UserError(
            "the tokenizer takes no new tokens for this target",
            got=f"{100 * single / target.num_tokens:.0f} % of it in characters that it lacks",
            allowed="a byte-level tokenizer, or one that has the target's characters",
        )
