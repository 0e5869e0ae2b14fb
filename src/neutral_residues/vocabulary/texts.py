"""The texts of a run from which a vocabulary is learnt and on which it is measured.

Held-out documents are left out. Only the beginning of large texts is read.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from neutral_residues.config.data import Corpus, DataSettings, Role
from neutral_residues.data.documents import content_key, iter_documents, iter_pairs
from neutral_residues.data.tokenise import is_held_out
from neutral_residues.errors import UserError
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.words import WordCounts, count_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGET_BYTES, SOURCE_BYTES = 16 * 2**20, 64 * 2**20
"""Size of the part of each corpus that is read, from its beginning."""
SCRIPT_BYTES = 4 * 2**20
"""The same for source corpora with `keep: script`, which needs only their scripts."""

Working = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
"""Progress display: called with a description and the largest amount of work, it gives a context
manager whose value is called with the work done since its last call."""


def without_display(what: str, total: int) -> AbstractContextManager[Callable[[int], object]]:
    """A progress display that shows nothing."""
    return nullcontext(lambda done: None)


@dataclass(frozen=True)
class TrainingTexts:
    """The training text of a run, by role."""

    target: tuple[Corpus, ...]
    source: tuple[Corpus, ...]
    held_out_share: float

    @classmethod
    def of(cls, data: DataSettings) -> Self:
        """The training text of a run; a UserError unless there is some of both roles."""
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
        """Key for the cache: changes with the text that is read."""
        keys = [[content_key(corpus) for corpus in side] for side in (self.target, self.source)]
        # Pairs have one key, whether both texts are read or only the completion.
        only_predicted = [corpus.completion_only_loss for corpus in self.target]
        return [
            *keys,
            only_predicted,
            self.held_out_share,
            TARGET_BYTES,
            SOURCE_BYTES,
            SCRIPT_BYTES,
        ]

    def words(
        self,
        role: Role,
        most_bytes: int,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        spelling: Spelling,
        working: Working,
    ) -> WordCounts:
        """Count the words of all corpora of a role, up to `most_bytes` bytes of each."""
        found: list[WordCounts] = []
        for corpus in self.target if role == "target" else self.source:
            texts = first_documents(
                corpus,
                most_bytes,
                held_out_share=self.held_out_share,
                only_predicted=role == "target",
            )
            with working(f"reading {corpus.name}", most_bytes) as advance:
                found.append(count_words(texts, tokenizer, spelling, advance=advance))
        return sum(found[1:], start=found[0])


def first_documents(
    corpus: Corpus, most_bytes: int, *, held_out_share: float = 0.0, only_predicted: bool = False
) -> Iterator[str]:
    """The first documents of a corpus that are not held out, up to `most_bytes` bytes together;
    with `only_predicted`, of pairs only what is predicted (the French of English-French pairs)."""
    for document, predicted in _documents(corpus):
        if held_out_share and is_held_out(document.encode(), held_out_share):
            continue
        text = predicted if only_predicted else document
        yield text
        most_bytes -= len(text.encode())
        if most_bytes <= 0:
            return


def _documents(corpus: Corpus) -> Iterator[tuple[str, str]]:
    """Each document, and the part of it that is predicted."""
    if corpus.kind == "pairs" and corpus.completion_only_loss:
        yield from ((pair.texts, pair.completion) for pair in iter_pairs(corpus))
    else:
        yield from ((text, text) for text in iter_documents(corpus))
