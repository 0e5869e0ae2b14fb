"""A checked run: what training, describing, planning and advising all start from.

    Setup.of(config)     every check that needs neither the texts nor the weights, in seconds
    setup.data           the texts as tokens, tokenised when first asked for; of a corpus with
                         `path: self` the backbone writes the text before
    setup.rows           the training rows in their order
    setup.backbone(...)  the weights

A method, a tokenizer and a device are objects from here on; nothing looks them up a second time.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from neutral_residues.backbone import (
    computes_in_bf16,
    empty_backbone,
    first_new_id,
    frozen_precision,
    load_backbone,
    load_config,
    load_tokenizer,
    on_device,
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
from neutral_residues.methods.token_starts import StartRows
from neutral_residues.methods.wider_tables import start_rows, widen_tables
from neutral_residues.results.self_text import SelfText
from neutral_residues.training.checks import (
    check_context,
    check_samples,
    check_trackers,
    prepare_chats,
)
from neutral_residues.training.cost import WeightCount
from neutral_residues.training.start_from import Start, extensions_beside
from neutral_residues.training.start_rows import start_rows as found_start_rows
from neutral_residues.tuner.blocks import count_backbone_weights
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.new_tokens import NewTokens
from neutral_residues.tuner.saved_adapter import add_adapter
from neutral_residues.vocabulary.run_vocabulary import learned_vocabulary
from neutral_residues.vocabulary.vocabulary import Vocabulary

ADAPTER = "default"
"""PEFT's name for the extension of a run."""
CALIBRATION_ROWS = 500
"""Rows of source text that a method sees before training, where it asks for them."""


def ranks() -> PartialState:
    """This process among the ranks that torchrun or accelerate started."""
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass(frozen=True, eq=False)
class Setup:
    """A run that was checked; make it with `Setup.of`.

    Attributes:
        config: the run with its method's own settings filled in.
        method: the row of the table of methods.
        model_config: the backbone's configuration.
        backbone_tokenizer: the backbone's tokenizer.
        end_of_text: id of the token that ends a document.
        weights: counted on a model without data.
        start: the extension that is trained on; None for a new one.
        beside: extensions that stay as they are, active beside the new one.
        self_replay: source text that the backbone writes itself; None where it writes none.
        device: where the model goes.
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
        """Check everything that can be checked before the texts are read and the weights loaded.

        Raises:
            UserError: for whatever the user can correct.
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
        """alpha; 0 for a method without a local loss."""
        return self.config.residues.local_loss_weight if self.method.has_local_loss else 0.0

    @property
    def bf16(self) -> bool:
        """Whether training computes in bfloat16."""
        training = self.config.training
        return computes_in_bf16(training, self.device, hidden_size=self.hidden_size)

    @property
    def hidden_size(self) -> int:
        """The backbone's width."""
        return int(self.model_config.get_text_config().hidden_size)

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimiser step, on all ranks."""
        training = self.config.training
        return training.batch_rows * training.accumulation * ranks().num_processes

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimiser step, on all ranks."""
        return self.rows_per_step * self.config.data.block_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole training reads."""
        return self.tokens_per_step * self.config.training.steps

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """New tokens, learnt from the target text when first asked for; None where the run has
        none."""
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
        """The same display, which counts bytes and not tokens."""
        with self.tokenising(what):
            yield lambda done: None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of the model to train: the backbone's, or that with new tokens."""
        return self.vocabulary.tokenizer if self.vocabulary else self.backbone_tokenizer

    @property
    def pieces(self) -> Pieces:
        """For each new token the backbone's tokens of the same text."""
        return self.vocabulary.pieces if self.vocabulary else ()

    @cached_property
    def data(self) -> RunData:
        """The texts as tokens; the main process fills the cache and the others read it."""
        return self._data(self.tokenizer)

    @cached_property
    def backbone_data(self) -> RunData:
        """The same in the backbone's tokens; without texts where these are the same."""
        if self.vocabulary is None:
            return RunData(train=(), evaluate=())
        return self._data(self.backbone_tokenizer)

    def _data(self, tokenizer: PreTrainedTokenizerBase) -> RunData:
        data = self.reading.data
        with ranks().main_process_first():
            return RunData.of(data, tokenizer, tokenising=self.tokenising)

    @cached_property
    def self_text(self) -> SelfText | None:
        """What the backbone wrote itself, which it does when first asked for; None where nothing is
        to be written."""
        if self.self_replay is None:
            return None
        with ranks().main_process_first():
            return self.self_replay.write(self.tokenising)

    @property
    def texts_at_hand(self) -> DataSettings:
        """The texts of the run, but for what its backbone has still to write."""
        replay = self.self_replay
        return replay.without() if replay and not replay.read() else self.reading.data

    @property
    def reading(self) -> RunConfig:
        """The run, with a file in the place of what the backbone writes."""
        return self.self_replay.as_file() if self.self_replay and self.self_text else self.config

    @cached_property
    def rows(self) -> Mixture:
        """All rows of the run in their order; noised ones only where a local loss uses them."""
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
        """Tokenise the texts and lay out the rows: whatever they raise is raised now."""
        _ = self.rows if self.method.trains_any else self.data

    def backbone(self, *, frozen: bool) -> PreTrainedModel:
        """The weights on the device: frozen ones as precise as the run file says, trained ones in
        float32 (autocast casts them)."""
        config, dtype, quantised = self.config, torch.float32, None
        if frozen:
            dtype, quantised = frozen_precision(config.training, bf16=self.bf16)
        model = load_backbone(config.model, **config.hub_options, dtype=dtype, quantised=quantised)
        return on_device(model, self.device)

    @property
    def holds_backbone(self) -> bool:
        """Whether the model to train is its backbone again, bit for bit, with its extension off."""
        return self.method.keeps_backbone and not self._widens_tables

    @property
    def _widens_tables(self) -> bool:
        return self.config.vocabulary.size > 0 and self.method.new_tokens == "in tables"

    def reference(self) -> PreTrainedModel | None:
        """The backbone, where the model to train does not hold it."""
        return None if self.holds_backbone else self.backbone(frozen=True)

    def model(self) -> torch.nn.Module:
        """The model to train, initialised from the run's seed."""
        set_seed(self.config.seed)
        backbone = self.backbone(frozen=self.method.keeps_backbone)
        rows = self._start_rows(backbone)
        if self._widens_tables:
            widen_tables(backbone, self.config.vocabulary.size)
            if rows is not None:
                start_rows(backbone, rows)
        model = self.method.attach(backbone, self.config)
        for adapter in getattr(model, "peft_config", {}).values():
            adapter.revision = self.config.revision
        for it in self.beside:
            add_adapter(model, it.weights, it.name)
        if self.beside:
            self.activate(model)
        if self.start:
            self.start.load(model, ADAPTER)
            return model
        if rows is not None and (tokens := _tokens_beside(model)):
            tokens.start_from(*rows)
        if self.method.calibrate is not None:
            self.method.calibrate(model, self.source_rows())
        return model

    @property
    def begins_as_backbone(self) -> bool:
        """Whether the model to train adds nothing before the first step."""
        return not (self.start or self.beside)

    def activate(self, model: nn.Module) -> None:
        """All extensions of a model that has several, and those train that are to."""
        extended: Any = model
        extended.base_model.set_adapter([*self.config.extension_names, *self.config.beside])
        extended.set_requires_grad(list(self.config.beside), requires_grad=False)

    def _start_rows(self, backbone: PreTrainedModel) -> StartRows | None:
        """Of new tokens; the main process fills the cache and the others read it."""
        if self.vocabulary is None or self.start:
            return None
        target = [stream for stream in self.data.train if stream.role == "target"]
        with ranks().main_process_first():
            return found_start_rows(
                self.config,
                backbone,
                self.pieces,
                target,
                bf16=self.bf16,
                tokenising=self.tokenising,
            )

    def source_rows(self, *, at_most: int = CALIBRATION_ROWS) -> Tensor:
        """(N, T) rows of the source corpora, evenly spread over all of them; the same in every
        process of the run."""
        tokens, streams = self.config.data.block_tokens, self.data.train
        blocks = [stream.blocks(tokens) for stream in streams if stream.role == "source"]
        numbers = np.arange(sum(map(len, blocks)))
        chosen = numbers[:: max(1, math.ceil(len(numbers) / at_most))]
        return torch.from_numpy(np.concatenate(blocks)[chosen].astype(np.int64))

    @property
    def windows(self) -> Windows:
        """How held-out text is cut to be measured."""
        return Windows(
            end_of_text=self.end_of_text,
            context_tokens=self.config.context_tokens,
            stride_tokens=self.config.stride_tokens,
            batch_rows=self.config.evaluation.batch_rows,
        )


def _tokens_beside(model: torch.nn.Module) -> NewTokens | None:
    layer = embeddings_layer(model)
    return layer.tokens(ADAPTER) if layer is not None else None


def _count_weights(
    config: RunConfig, method: Method, backbone: PretrainedConfig, start: Start | None
) -> WeightCount:
    """Attaches the method to a model without data, so a budget that cannot be met raises here, and
    a start of another size."""
    own = copy.deepcopy(backbone)  # wider tables change it
    model = empty_backbone(own, trust_remote_code=config.trust_remote_code)
    weights = WeightCount(count_backbone_weights(model))
    if method.new_tokens == "in tables" and config.vocabulary.size:
        widen_tables(model, config.vocabulary.size)
    extended = method.attach(model, config) if method.trains_any else model
    if start:
        start.check(extended, ADAPTER)
    return weights.with_model(extended) if method.trains_any else weights
