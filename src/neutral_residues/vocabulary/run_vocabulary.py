"""The vocabulary of a run: learnt once from its training text, then read from the cache; and what
it leaves as it was.

Held-out documents are not learnt from. Of large texts only the beginning is read.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from neutral_residues.config.run import Corpus, DataSettings, Role, RunConfig
from neutral_residues.data.documents import content_key, iter_documents, short_hash
from neutral_residues.data.tokenise import batches, encoder, is_held_out, tokenizer_key
from neutral_residues.errors import UserError
from neutral_residues.files import default_cache_folder, locked
from neutral_residues.vocabulary.keep import may_merge
from neutral_residues.vocabulary.learn import NewTokens, learn
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.vocabulary import Vocabulary, VocabularyFile
from neutral_residues.vocabulary.words import WordCounts, count_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Changes when the same texts give other tokens, so that an old cache is not read."""
TARGET_BYTES, SOURCE_BYTES = 16 * 2**20, 64 * 2**20
"""Text of each corpus that is read, at most, from its beginning."""
SCRIPT_BYTES = 4 * 2**20
"""The same for source text of which only the script counts."""
MOST_TOKENS = 16_000
"""Tokens that are learnt at once: those of a smaller vocabulary are the first of them."""

Working = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Entered with what is done and with how much there is of it at most; what it gives is told how
much was done since it was last called."""


def without_display(what: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """Shows nothing."""
    return nullcontext(lambda done: None)


def learned_vocabulary(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_id: int,
    working: Working = without_display,
) -> Vocabulary | None:
    """The vocabulary that a run file asks for, or None with `size: 0`.

    Args:
        tokenizer: the backbone's.
        first_id: id of the first new token: the rows of the backbone's embeddings.

    Raises:
        UserError: for a tokenizer that takes no new merges, text that cannot be read, a target in
            the source's script with `keep: script`, more tokens than the target text gives.
    """
    settings = config.vocabulary
    if settings.size == 0:
        return None
    most = max(settings.size, MOST_TOKENS)
    found = learned_tokens(config, tokenizer, first_id=first_id, most=most, working=working)
    if len(found.tokens) < settings.size:
        raise UserError(
            "vocabulary.size is more than the target text gives",
            got=settings.size,
            allowed=f"at most {len(found.tokens):,} with keep: {settings.keep}",
            do="lower it, or give more target text",
        )
    return Vocabulary(tokenizer, found.first(settings.size), settings.keep)


def learned_tokens(
    config: RunConfig,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    first_id: int,
    most: int = MOST_TOKENS,
    working: Working = without_display,
) -> NewTokens:
    """Up to `most` tokens for the target text of a run, from the cache if they are there; raises as
    `learned_vocabulary`."""
    if first_id <= (largest := max(tokenizer.get_vocab().values())):
        what = "the tokenizer has more tokens than the model has rows for"
        raise UserError(what, got=f"{largest + 1:,} and {first_id:,}", do="check the model folder")
    texts = _Texts.of(config.data)
    key, keep = tokenizer_key(tokenizer), config.vocabulary.keep
    recipe = short_hash(VERSION, texts.key, key, keep, first_id, most)
    path = (config.data.cache or default_cache_folder()) / f"vocabulary-{recipe}.json"
    with locked(path.with_name(f".{path.name}.lock"), on_wait=lambda: None):
        try:
            return VocabularyFile.read(path).new_tokens
        except UserError:  # not there, or damaged: it is made now
            spelling = Spelling.of(tokenizer)
            words = partial(texts.words, tokenizer=tokenizer, spelling=spelling, working=working)
            target = words("target", TARGET_BYTES)
            source = words("source", SCRIPT_BYTES if keep == "script" else SOURCE_BYTES)
            allowed = may_merge(keep, target=target, source=source, spelling=spelling)
            with working("learning tokens", most) as advance:
                options: dict[str, Any] = {"size": most, "first_id": first_id, "advance": advance}
                found = learn(target, spelling, may_merge=allowed, **options)
            VocabularyFile(base_tokenizer=key, keep=keep, new_tokens=found).write(path)
            return found


@dataclass(frozen=True)
class _Texts:
    """The training text of a run, by role."""

    target: tuple[Corpus, ...]
    source: tuple[Corpus, ...]
    held_out_share: float

    @classmethod
    def of(cls, data: DataSettings) -> Self:
        """A UserError unless there is some of both."""
        target, source = (
            tuple(corpus for corpus in data.train if corpus.role == role)
            for role in ("target", "source")
        )
        for role, side in (("target", target), ("source", source)):
            if not side:
                why = {"target": "to learn from", "source": "to know what to keep"}[role]
                what = f"new tokens need {role} text {why}"
                raise UserError(what, do=f"add a corpus with role: {role} to data.train")
        return cls(target, source, 0.0 if data.evaluate else data.held_out_share)

    @property
    def key(self) -> list[object]:
        """Changes with what is read."""
        keys = [[content_key(corpus) for corpus in side] for side in (self.target, self.source)]
        return [*keys, self.held_out_share, TARGET_BYTES, SOURCE_BYTES, SCRIPT_BYTES]

    def words(
        self,
        role: Role,
        most_bytes: int,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        spelling: Spelling,
        working: Working,
    ) -> WordCounts:
        """The words of all corpora of a role, of each up to so many bytes."""
        found: list[WordCounts] = []
        for corpus in self.target if role == "target" else self.source:
            texts = _beginning(corpus, most_bytes, self.held_out_share)
            with working(f"reading {corpus.name}", most_bytes) as advance:
                found.append(count_words(texts, tokenizer, spelling, advance=advance))
        return sum(found[1:], start=found[0])


def _beginning(corpus: Corpus, most_bytes: int, held_out_share: float = 0.0) -> Iterator[str]:
    """The documents that are not held out, until they have as many bytes."""
    for text in iter_documents(corpus):
        document = text.encode()
        if held_out_share and is_held_out(document, held_out_share):
            continue
        yield text
        most_bytes -= len(document)
        if most_bytes <= 0:
            return


# ---- what it leaves as it was ----


@dataclass(frozen=True)
class ChangedDocuments:
    """How many documents of a source corpus get other tokens."""

    name: str
    use: str
    """What the corpus is for in the run: train, evaluate or validate."""
    num_documents: int
    """Those that were looked at, from the beginning."""
    num_changed: int


def changed_documents(
    vocabulary: Vocabulary, data: DataSettings, *, working: Working = without_display
) -> list[ChangedDocuments]:
    """Tokenise every source corpus of a run with and without the new tokens and compare."""
    uses = {"train": data.train, "evaluate": data.evaluate, "validate": data.validate_on}
    old, new = encoder(vocabulary.base), encoder(vocabulary.tokenizer)
    found = []
    for use, corpora in uses.items():
        for corpus in (corpus for corpus in corpora if corpus.role == "source"):
            num_documents = num_changed = 0
            with working(f"comparing {corpus.name}", SOURCE_BYTES) as advance:
                for texts in batches(_beginning(corpus, SOURCE_BYTES)):
                    num_documents += len(texts)
                    pairs = zip(old(texts), new(texts), strict=True)
                    num_changed += sum(before != after for before, after in pairs)
                    advance(sum(len(text.encode()) for text in texts))
            found.append(ChangedDocuments(corpus.name, use, num_documents, num_changed))
    return found
