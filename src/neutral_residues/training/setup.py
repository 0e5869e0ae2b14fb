"""What a run needs before its first step: texts as tokens, rows in their order, ranks,
precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import PartialState
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from neutral_residues.backbone import context_length
from neutral_residues.config.run import Corpus, RunConfig
from neutral_residues.data.documents import check_not_the_same
from neutral_residues.data.mixture import Mixture, Noise
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import end_of_text_id, tokenise
from neutral_residues.errors import UserError
from neutral_residues.files import default_cache_folder
from neutral_residues.methods.table import find_method
from neutral_residues.results.record import EvaluationSet


@dataclass(frozen=True)
class RunData:
    """Token streams of a run."""

    train: tuple[TokenStream, ...]
    evaluate: tuple[TokenStream, ...]
    validate: tuple[TokenStream, ...]

    @property
    def while_training(self) -> tuple[TokenStream, ...]:
        """What is measured on the way."""
        return self.validate or self.evaluate

    def sets(self) -> list[EvaluationSet]:
        """For the record."""
        evaluated = [evaluation_set(stream, "evaluate") for stream in self.evaluate]
        return evaluated + [evaluation_set(stream, "validate") for stream in self.validate]


def evaluation_set(stream: TokenStream, use: str) -> EvaluationSet:
    """What a record says of a text that was measured; `use` is "evaluate" or "validate"."""
    sizes = {
        "num_bytes": stream.num_bytes,
        "num_tokens": stream.num_tokens,
        "num_documents": stream.num_documents,
    }
    return EvaluationSet.model_validate(
        {
            "name": stream.name,
            "role": stream.role,
            "use": use,
            "key": stream.content_hash(),
            **sizes,
        }
    )


def check_context(config: RunConfig, model_config: PretrainedConfig) -> None:
    """Raise if a row or window is longer than the model can read."""
    longest = context_length(model_config)
    for key, tokens in (
        ("data.block_tokens", config.data.block_tokens),
        ("context_tokens", config.context_tokens),
    ):
        if longest is not None and tokens > longest:
            raise UserError(
                f"{key} is longer than the model's context",
                got=tokens,
                allowed=f"at most {longest}",
            )


def prepare_data(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, *, show_progress: bool
) -> RunData:
    """Tokenise what is not in the cache yet; hold out documents of the training text if no
    evaluation sets are given."""
    check_not_the_same([*config.data.train, *config.data.evaluate, *config.data.validate_on])
    share = 0.0 if config.data.evaluate else config.data.held_out_share

    def streams(
        corpora: tuple[Corpus, ...], held_out_share: float
    ) -> list[tuple[TokenStream, TokenStream | None]]:
        return [
            tokenise(
                corpus,
                tokenizer,
                cache_dir=config.data.cache or default_cache_folder(),
                held_out_share=held_out_share,
                show_progress=show_progress,
            )
            for corpus in corpora
        ]

    train = streams(config.data.train, share)
    held_out = [stream for _, stream in train if stream is not None]
    evaluate_on = [stream for stream, _ in streams(config.data.evaluate, 0.0)] or held_out
    validate_on = [stream for stream, _ in streams(config.data.validate_on, 0.0)]
    return RunData(tuple(stream for stream, _ in train), tuple(evaluate_on), tuple(validate_on))


def make_rows(config: RunConfig, data: RunData, tokenizer: PreTrainedTokenizerBase) -> Mixture:
    """All rows of the run, in their fixed order; noised ones only where a local loss has a use for
    them."""
    training, residues = config.training, config.residues
    has_local_loss = find_method(config.method).has_local_loss and residues.local_loss_weight > 0
    noise = Noise(residues.source_noise, len(tokenizer), end_of_text_id(tokenizer))
    return Mixture(
        data.train,
        block_tokens=config.data.block_tokens,
        source_share=config.data.source_share,
        num_rows=training.steps * training.batch_rows * training.accumulation * world_size(),
        seed=config.seed,
        noise=noise if has_local_loss else None,
    )


def tokens_per_step(config: RunConfig) -> int:
    """Tokens that one optimiser step reads, on all ranks."""
    training = config.training
    return training.batch_rows * training.accumulation * world_size() * config.data.block_tokens


def world_size() -> int:
    """Number of ranks, as torchrun and accelerate launch announce it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_rank() -> bool:
    """Whether this process is the one that writes, measures and prints."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def first_rank_first() -> Iterator[None]:
    """What the first rank writes within the block, the others find."""
    if world_size() == 1:
        yield
        return
    with PartialState(cpu=not torch.accelerator.is_available()).main_process_first():
        yield
