"""The texts of a run by what they are for: as token streams, or only their sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from neutral_residues.config.run import Corpus, DataSettings
from neutral_residues.data.documents import check_not_the_same
from neutral_residues.data.text_size import TextSize, text_size
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import Tokenising, tokenise, without_display
from neutral_residues.files import default_cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Parts = tuple[tuple[T, ...], tuple[T, ...], tuple[T, ...]]
"""What there is of training, evaluation and validation text."""


@dataclass(frozen=True)
class RunData:
    """Token streams of a run.

    Attributes:
        train: what the model learns from.
        evaluate: held-out text, measured at the end.
        validate: other held-out text, measured during training; may be empty.
    """

    train: tuple[TokenStream, ...]
    evaluate: tuple[TokenStream, ...]
    validate: tuple[TokenStream, ...] = ()

    @property
    def while_training(self) -> tuple[TokenStream, ...]:
        """What is measured during training."""
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
        evaluation sets are given.

        Raises:
            UserError: for text that cannot be read or tokenised, or that is both source and target.
        """
        cache_dir = settings.cache or default_cache_folder()

        def read(corpus: Corpus, held_out_share: float) -> tuple[TokenStream, TokenStream | None]:
            return tokenise(
                corpus,
                tokenizer,
                cache_dir=cache_dir,
                held_out_share=held_out_share,
                tokenising=tokenising,
            )

        return cls(*_parts(settings, read))


def text_sizes(settings: DataSettings, tokenizer: "PreTrainedTokenizerBase") -> Parts[TextSize]:
    """Sizes of what `RunData.of` gives: training, evaluation and validation text. Large texts that
    are not in the cache are estimated.

    Raises:
        UserError: as `RunData.of`.
    """
    cache_dir = settings.cache or default_cache_folder()
    return _parts(
        settings,
        lambda corpus, share: text_size(
            corpus, tokenizer, cache_dir=cache_dir, held_out_share=share
        ),
    )


def _parts(settings: DataSettings, read: Callable[[Corpus, float], tuple[T, T | None]]) -> Parts[T]:
    check_not_the_same([*settings.train, *settings.evaluate, *settings.validate_on])

    def whole(corpora: Sequence[Corpus]) -> tuple[T, ...]:
        return tuple(read(corpus, 0.0)[0] for corpus in corpora)

    share = 0.0 if settings.evaluate else settings.held_out_share
    train = [read(corpus, share) for corpus in settings.train]
    held_out = tuple(part for _, part in train if part is not None)
    evaluate = whole(settings.evaluate) or held_out
    return tuple(part for part, _ in train), evaluate, whole(settings.validate_on)
