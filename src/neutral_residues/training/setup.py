"""A checked run: training, `describe`, `compare --plan` and `advise` all start from a `Setup`.

    Setup.of(config)     every check that needs neither the texts nor the weights, in seconds
    setup.data           the texts as tokens, tokenised when first used; for a corpus with
                         `path: self` the backbone first writes the text
    setup.rows           the training rows in their order

Its models are made in `models.py`. From here on, method, tokenizer and device are objects, and are
not looked up again by name.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from neutral_residues.backbone import (
    computes_in_bf16,
    empty_backbone,
    first_new_id,
    load_config,
    load_tokenizer,
    pick_device,
)
from neutral_residues.config.data import DataSettings
from neutral_residues.config.run import RunConfig
from neutral_residues.data.mixture import Mixture, Noise
from neutral_residues.data.run_data import RunData
from neutral_residues.data.tokenise import Tokenising, end_of_text_id, without_display
from neutral_residues.evaluation.possible import Pieces
from neutral_residues.evaluation.self_replay import SelfReplay
from neutral_residues.evaluation.windows import Windows
from neutral_residues.methods.saved_extension import Extension
from neutral_residues.methods.table import Method, find_method
from neutral_residues.methods.wider_tables import widen_tables
from neutral_residues.results.self_text import SelfText
from neutral_residues.training.checks import (
    check_context,
    check_samples,
    check_trackers,
    prepare_chats,
)
from neutral_residues.training.cost import WeightCount
from neutral_residues.training.start_from import Start, extensions_beside
from neutral_residues.tuner.blocks import count_backbone_weights
from neutral_residues.vocabulary.run_vocabulary import learned_vocabulary
from neutral_residues.vocabulary.vocabulary import Vocabulary

ADAPTER = "default"
"""PEFT's name for the extension of a run."""
CALIBRATION_ROWS = 500
"""Maximum number of source rows passed to a method that calibrates itself before training."""


def ranks() -> PartialState:
    """Rank of this process and number of processes, as torchrun or accelerate started them."""
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass(frozen=True, eq=False)
class Setup:
    """A run that passed all checks; create it with `Setup.of`.

    Attributes:
        config: the run file, with the settings that its method fixes filled in.
        method: the method's row in the table of methods.
        model_config: the backbone's configuration.
        backbone_tokenizer: the backbone's tokenizer, without new tokens.
        end_of_text: id of the token that ends a document.
        weights: number of weights, counted on the meta device.
        start: the saved extension to continue training (`start_from`); None for a new one.
        beside: saved extensions that are active but frozen while the new one trains (`beside`).
        self_replay: the source text that the backbone writes itself; None without such a corpus.
        device: the device of the model.
        tokenising: how progress is shown while texts are tokenised.
    """

    config: RunConfig
    method: Method
    model_config: PretrainedConfig
    backbone_tokenizer: PreTrainedTokenizerBase
    end_of_text: int
    weights: WeightCount
    start: Start | None
    beside: list[Extension]
    self_replay: SelfReplay | None
    device: torch.device
    tokenising: Tokenising = without_display

    @classmethod
    def of(cls, config: RunConfig, *, tokenising: Tokenising = without_display) -> "Setup":
        """Check everything that can be checked before texts are read and weights are loaded.

        Raises:
            UserError: for a setting, model or method that does not fit the others.
        """
        method = find_method(config.method)
        config = method.resolve(config)
        check_trackers(config.training)
        model_config = load_config(config.model, **config.hub_options)
        check_context(config, model_config)
        tokenizer = load_tokenizer(config.model, **config.hub_options)
        end_of_text = end_of_text_id(tokenizer, config.data.end_of_text)
        prepare_chats(tokenizer, config.data)
        check_samples(config.evaluation, model_config, tokenizer)
        start, beside = Start.of(config), extensions_beside(config, method)
        return cls(
            config=config,
            method=method,
            model_config=model_config,
            backbone_tokenizer=tokenizer,
            end_of_text=end_of_text,
            weights=_count_weights(config, method, model_config, start),
            start=start,
            beside=beside,
            self_replay=SelfReplay.of(config, tokenizer, model_config),
            device=pick_device(),
            tokenising=tokenising,
        )

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""
        return self.method.peak_learning_rate(self.config, hidden_size=self.hidden_size)

    @property
    def local_loss_weight(self) -> float:
        """Weight of the local loss (alpha); 0 for a method without one."""
        return self.config.residues.local_loss_weight if self.method.has_local_loss else 0.0

    @property
    def bf16(self) -> bool:
        """Whether training computes in bfloat16."""
        training = self.config.training
        return computes_in_bf16(training, self.device, hidden_size=self.hidden_size)

    @property
    def hidden_size(self) -> int:
        """Hidden size of the backbone."""
        return int(self.model_config.get_text_config().hidden_size)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step, over all ranks."""
        training = self.config.training
        return training.batch_rows * training.accumulation * ranks().num_processes

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step, over all ranks."""
        return self.rows_per_step * self.config.data.block_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of all optimiser steps, over all ranks."""
        return self.tokens_per_step * self.config.training.steps

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The new tokens, learnt from the target text on first use, or those of `start_from`; None
        if the run adds no tokens."""
        if not self.config.vocabulary.size:
            return None
        if self.start:
            return self.start.vocabulary(self.backbone_tokenizer)
        reading = self.reading
        with ranks().main_process_first():
            return learned_vocabulary(
                reading,
                self.backbone_tokenizer,
                first_id=first_new_id(self.model_config),
                working=self._working,
            )

    @contextmanager
    def _working(self, what: str, total: int) -> Iterator[Callable[[int], object]]:
        """The progress display of `tokenising`, with a callback that ignores what it is given:
        learning counts tokens, and the display counts bytes."""
        with self.tokenising(what):
            yield lambda done: None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model to train: the backbone's, with the new tokens if there are
        any."""
        return self.vocabulary.tokenizer if self.vocabulary else self.backbone_tokenizer

    @property
    def pieces(self) -> Pieces:
        """For each new token, the backbone's tokens that spell the same text."""
        return self.vocabulary.pieces if self.vocabulary else ()

    @cached_property
    def data(self) -> RunData:
        """The texts as tokens of `tokenizer`; the main process fills the cache, the other ranks
        read it."""
        return self._data(self.tokenizer)

    @cached_property
    def backbone_data(self) -> RunData:
        """The texts as tokens of the backbone's tokenizer; empty if the run adds no tokens, because
        `data` is the same then."""
        if self.vocabulary is None:
            return RunData(train=(), evaluate=())
        return self._data(self.backbone_tokenizer)

    def _data(self, tokenizer: PreTrainedTokenizerBase) -> RunData:
        data = self.reading.data
        with ranks().main_process_first():
            return RunData.of(data, tokenizer, tokenising=self.tokenising)

    @cached_property
    def self_text(self) -> SelfText | None:
        """What is known of the source text that the backbone wrote, which it does on first use
        unless it is cached; None if no corpus has `path: self`."""
        if self.self_replay is None:
            return None
        with ranks().main_process_first():
            return self.self_replay.write(self.tokenising)

    @property
    def texts_at_hand(self) -> DataSettings:
        """The texts of the run that exist now: without the corpus that the backbone writes, as long
        as it is not written."""
        replay = self.self_replay
        return replay.without() if replay and not replay.read() else self.reading.data

    @property
    def reading(self) -> RunConfig:
        """The run file, with `path: self` replaced by the path of the text that the backbone
        wrote."""
        return self.self_replay.as_file() if self.self_replay and self.self_text else self.config

    @cached_property
    def rows(self) -> Mixture:
        """All training rows of the run, in their order. Source rows are noised only if there is a
        local loss."""
        config = self.config
        noise = Noise(config.residues.source_noise, len(self.backbone_tokenizer), self.end_of_text)
        return Mixture(
            self.data.train,
            block_tokens=config.data.block_tokens,
            source_share=config.data.source_share,
            num_rows=config.training.steps * self.rows_per_step,
            seed=config.seed,
            noise=noise if self.local_loss_weight > 0 else None,
            spliced_share=config.data.spliced_share,
            shares=config.data.shares,
        )

    def prepare(self) -> None:
        """Tokenise the texts and create the rows now, so that their errors are raised here."""
        _ = self.rows if self.method.trains_any else self.data

    @property
    def widens_tables(self) -> bool:
        """Whether new tokens are rows of the backbone's own embeddings and head."""
        return self.config.vocabulary.size > 0 and self.method.new_tokens == "in tables"

    @property
    def begins_as_backbone(self) -> bool:
        """Whether the model to train has the backbone's outputs before the first step: not if it
        continues a trained extension (`start_from`) or has others (`beside`)."""
        return not (self.start or self.beside)

    def source_rows(self, *, at_most: int = CALIBRATION_ROWS) -> Tensor:
        """Token ids (N, T) of at most `at_most` source rows, evenly spread over the source corpora;
        the same on every rank."""
        tokens, streams = self.config.data.block_tokens, self.data.train
        blocks = [stream.blocks(tokens) for stream in streams if stream.role == "source"]
        numbers = np.arange(sum(map(len, blocks)))
        chosen = numbers[:: max(1, math.ceil(len(numbers) / at_most))]
        return torch.from_numpy(np.concatenate(blocks)[chosen].astype(np.int64))

    @property
    def windows(self) -> Windows:
        """How held-out text is cut into windows for evaluation."""
        return Windows(
            end_of_text=self.end_of_text,
            context_tokens=self.config.context_tokens,
            stride_tokens=self.config.stride_tokens,
            batch_rows=self.config.evaluation.batch_rows,
        )


def _count_weights(
    config: RunConfig, method: Method, backbone: PretrainedConfig, start: Start | None
) -> WeightCount:
    """Weights of the model with the method attached, on the meta device. Raises a UserError for a
    budget that cannot be met, and for a `start_from` of another size."""
    own = copy.deepcopy(backbone)  # `widen_tables` changes it
    model = empty_backbone(own, trust_remote_code=config.trust_remote_code)
    weights = WeightCount(count_backbone_weights(model))
    if method.new_tokens == "in tables" and config.vocabulary.size:
        widen_tables(model, config.vocabulary.size)
    extended = method.attach(model, config) if method.trains_any else model
    if start:
        start.check(extended, ADAPTER)
    return weights.with_model(extended) if method.trains_any else weights
