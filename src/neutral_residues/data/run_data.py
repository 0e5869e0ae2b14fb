"""The texts of a run as token streams, by what they are for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neutral_residues.config.run import Corpus, DataSettings
from neutral_residues.data.documents import check_not_the_same
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import tokenise
from neutral_residues.files import default_cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        show_progress: bool = False,
    ) -> "RunData":
        """Tokenise what is not in the cache yet; hold out documents of the training text if no
        evaluation sets are given.

        Raises:
            UserError: for text that cannot be read or tokenised, or that is both source and target.
        """
        check_not_the_same([*settings.train, *settings.evaluate, *settings.validate_on])

        def streams(
            corpora: Sequence[Corpus], held_out_share: float = 0.0
        ) -> list[tuple[TokenStream, TokenStream | None]]:
            return [
                tokenise(
                    corpus,
                    tokenizer,
                    cache_dir=settings.cache or default_cache_folder(),
                    held_out_share=held_out_share,
                    show_progress=show_progress,
                )
                for corpus in corpora
            ]

        train = streams(settings.train, 0.0 if settings.evaluate else settings.held_out_share)
        held_out = [stream for _, stream in train if stream is not None]
        evaluate = [stream for stream, _ in streams(settings.evaluate)] or held_out
        validate = [stream for stream, _ in streams(settings.validate_on)]
        return cls(tuple(stream for stream, _ in train), tuple(evaluate), tuple(validate))
