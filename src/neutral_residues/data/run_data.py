"""The training, evaluation and validation text of a run: as token streams, or only their sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from neutral_residues.config.data import Corpus, DataSettings
from neutral_residues.data.documents import check_not_the_same
from neutral_residues.data.text_size import TextSize, text_size
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import Tokenising, tokenise, without_display
from neutral_residues.files import default_cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Parts = tuple[tuple[T, ...], tuple[T, ...], tuple[T, ...]]
"""Training, evaluation and validation text."""


@dataclass(frozen=True)
class RunData:
    """Token streams of a run."""

    train: tuple[TokenStream, ...]  # what the model learns from
    evaluate: tuple[TokenStream, ...]  # held-out text, measured at the end
    validate: tuple[TokenStream, ...] = ()  # other held-out text, measured during training

    @property
    def while_training(self) -> tuple[TokenStream, ...]:
        """The sets that are measured during training."""
        return self.validate or self.evaluate

    @classmethod
    def of(
        cls,
        settings: DataSettings,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        tokenising: Tokenising = without_display,
    ) -> "RunData":
        """Tokenise what is not in the cache yet; hold out documents of the training text if no
        evaluation sets are given. A UserError for what cannot be read, or is source and target."""
        return cls(*_parts(settings, partial(tokenise, tokenizer=tokenizer, tokenising=tokenising)))


def text_sizes(settings: DataSettings, tokenizer: "PreTrainedTokenizerBase") -> Parts[TextSize]:
    """Sizes of what `RunData.of` gives: training, evaluation and validation text; large texts that
    are not in the cache are estimated."""
    return _parts(settings, partial(text_size, tokenizer=tokenizer))


def _parts(settings: DataSettings, read: Callable[..., tuple[T, T | None]]) -> Parts[T]:
    check_not_the_same(settings.corpora)
    cache = settings.cache or default_cache_folder()
    read = partial(read, cache_dir=cache, end_of_text=settings.end_of_text)

    def whole(corpora: Sequence[Corpus]) -> tuple[T, ...]:
        return tuple(read(corpus)[0] for corpus in corpora)

    share = 0.0 if settings.evaluate else settings.held_out_share
    train = [read(corpus, held_out_share=share) for corpus in settings.train]
    held_out = tuple(part for _, part in train if part is not None)
    evaluate = whole(settings.evaluate) or held_out
    return tuple(part for part, _ in train), evaluate, whole(settings.validate_on)
