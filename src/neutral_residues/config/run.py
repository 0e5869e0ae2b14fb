"""The run file: all settings of one run, in one YAML file, checked before anything expensive
starts.

Every field is documented by the line under it. Unknown keys are errors that name the nearest known
one. The fully resolved configuration is written next to the results before the first step. No torch
here.
"""

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from neutral_residues.config.base import Settings, checked, read_values
from neutral_residues.config.choices import (
    Gate,
    GateReads,
    GateStart,
    Init,
    Keep,
    LocalLoss,
    Placement,
    check_choices,
)
from neutral_residues.config.data import DataSettings

MOST_SELF_TOKENS = 1_000_000
"""Default limit of the tokens that a backbone generates for `path: self`; a run that needs more
reads them several times."""


class VocabularySettings(Settings):
    """New tokens for the target language. The backbone's tokens keep their ids, and source text is
    still split into them."""

    size: int = Field(default=0, ge=0)
    """Number of new tokens; `neutral vocabulary` prints how much shorter target text gets with each
    size."""
    keep: Keep = "script"
    """How source text is kept free of new tokens. script: every new token contains a letter of a
    script that source text does not have, so that the tokens of text without such letters do not
    change. unseen, for a target language in the script of the source: no new token occurs in the
    source corpora of data.train."""
    start: Literal["pieces", "distilled", "random"] = "pieces"
    """Initial embedding and output weights of a new token. pieces: the mean over the backbone's
    tokens that it replaces. distilled: the same for the output weights, while embeddings are first
    trained by token distillation, so that the backbone has the same hidden states as on target text
    in its own tokens. random: random weights."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in fields if getattr(self, name) != fields[name].default]
        if self.size == 0 and idle:
            raise ValueError(f"{idle[0]} has no effect with size 0; set size, or remove it")
        return self


class ResidueSettings(Settings):
    """The adapters of the method `neutral`, its variants, and the method `adapter`. Settings that
    `NeutralResiduesConfig` has too have the same name there."""

    placement: Placement = "ffn"
    """The block that the adapters run parallel to: feed-forward block (ffn) or attention."""
    head_rank: int | None = Field(default=None, ge=0)
    """Rank of the residue on the output head, which counts in the budget; 0: none, null: 64, or
    what a quarter of the new weights allows."""
    block_gate: Gate = "relu"
    """Activation function of the gate, which is one number per token. The method `adapter` has no
    gate."""
    activation: str | None = None
    """Activation function inside the adapters, by its name in Transformers; null: that of the
    backbone."""
    init: Init = "usual"
    """Initial variance of the inner projections of the adapters: 2/D (usual) or 1/(D L) (paper),
    with hidden size D and L adapters."""
    gate_start: GateStart = "open"
    """Gates at initialisation. open: 1 on every token; random: closed on half of all tokens, with
    no bias; half: 1/2 on every token, for a sigmoid gate, with no bias. A gate that reads tokens
    always starts open."""
    gate_reads: GateReads = "tokens"
    """Input of the gates. tokens: the last 16 tokens, with one gate for all layers and the head;
    layer (the paper): the input of the layer, with a gate in each layer."""
    layers_to_transform: tuple[int, ...] | None = None
    """Indices of the layers that get an adapter, from 0; null: all. If gates read layers and there
    are four layers or more, null leaves out the first."""
    local_loss: LocalLoss = "l1"
    """Loss that trains gates to close on source text. l1: norm of the gated output on source
    tokens, relative to the output of the block itself; cross_entropy: the sigmoid gate as a
    classifier of source and target tokens."""
    local_loss_weight: float = Field(default=0.06, ge=0)
    """Weight of the local loss (the paper's alpha). With a larger weight the model forgets less,
    and learns less."""
    gate_learning_rate_factor: float = Field(default=2.0, gt=0)
    """Learning rate of the gates, as a multiple of that of the projections. It is divided by the
    root mean square of the gate's input, if that is below 1."""
    per_target: bool = False
    """Train one extension for each target corpus, each with the whole budget and named after its
    corpus. Text of the other target corpora is source text for it. In the result all are active."""
    source_noise: float = Field(default=0.5, ge=0, le=1)
    """Share of the source rows (spliced ones not counted) in which some tokens are replaced by
    random ones, so that gates stay closed on unusual text."""

    @model_validator(mode="after")
    def _choices_go_together(self) -> Self:
        names = ("block_gate", "gate_start", "local_loss")
        check_choices(**{name: getattr(self, name) for name in names})
        return self


class LoraSettings(Settings):
    """The method `lora` and its variants. The rank follows from the budget."""

    modules: Literal["all-linear", "mlp"] = "all-linear"
    """Linear layers that get a low-rank update: all of the decoder layers, or only those of their
    feed-forward blocks (mlp)."""
    alpha_over_rank: float = Field(default=2.0, gt=0)
    """PEFT's `lora_alpha` divided by the rank."""
    embedding_learning_rate_factor: float = Field(default=0.2, gt=0)
    """Learning rate of embeddings and head, as a multiple of that of the low-rank updates."""
    gate_learning_rate_factor: float = Field(default=5.0, gt=0)
    """Learning rate of the gates of `disel`, as a multiple of that of the low-rank updates."""


class ScalingSettings(Settings):
    """The methods that scale what a finished run has learnt, without training: `wise-ft` (scales
    `finetune`), `lora-scaled` and `adapter-scaled`."""

    share: float = Field(default=0.5, ge=0, le=1)
    """Factor for what was learnt: 0 gives the backbone, 1 the trained model."""
    trained: Path | None = None
    """Output folder of the finished run; `neutral compare` fills it in."""


class TrainingSettings(Settings):
    """The training loop, which is the same for every method."""

    steps: int = Field(default=1000, ge=1)
    """Number of optimiser steps."""
    batch_rows: int = Field(default=8, ge=1)
    """Rows per forward pass and device."""
    accumulation: int = Field(default=1, ge=1)
    """Gradient accumulation: forward passes per optimiser step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null: the default of the method, scaled to the hidden size of the
    backbone."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""
    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the cosine schedule, as a share of the peak."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of KL(backbone || model) in nats, which is added to the language-modelling loss of
    each source token. It keeps predictions on source rows near the backbone's, with any method."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon (the default of method neutral): torch's Muon for the matrices inside the layers, at a
    rate that follows from `learning_rate`; AdamW for all other weights."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of computations. bfloat16: autocast, with trained weights in float32; auto:
    bfloat16 on a GPU that supports it, and on a CPU with AVX512-BF16 or AMX if the hidden size is
    at least 512."""
    frozen_weights: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """How weights that are not trained are stored; trained weights are always float32. auto follows
    `precision`; int8 and nf4 (8 and 4 bits) need bitsandbytes, and backbone and extended model are
    then both measured with the quantised weights."""
    compile: bool = False
    """Use torch.compile: the first step takes a minute or more, later steps are faster."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines in the log."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between evaluations."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Number of checkpoints that are kept, the newest ones."""
    report_to: tuple[str, ...] = ()
    """Experiment trackers, as in Transformers' `TrainingArguments`: tensorboard, wandb, ..."""


SPLICED_SET_TOKENS = 8192
"""Tokens of text that switches language which are measured by default."""


class EvaluationSettings(Settings):
    """How backbone and extended model are measured."""

    context_tokens: int | None = Field(default=None, ge=1)
    """Number of tokens of a window: text is scored in windows that slide over it. null:
    data.block_tokens."""
    stride_tokens: int | None = Field(default=None, ge=1)
    """Number of tokens by which windows slide; each scores only those that the previous one did not
    contain. null: half of context_tokens."""
    batch_rows: int = Field(default=16, ge=1)
    """Windows per forward pass; fewer if their logits would take more than half a GiB."""
    tokens_while_training: int = Field(default=20_000, ge=1)
    """Approximate number of tokens of each set that are measured during training; at the end all
    are measured."""
    kl: bool = False
    """Also measure the KL divergence from the backbone, on all tokens, at the end."""
    spliced_windows: int | None = Field(default=None, ge=0)
    """Number of windows in which text of the first source and the first target set alternates,
    measured at the end; null: as many as have 8,192 tokens together; 0: none."""
    gate_texts: tuple[str, ...] = ()
    """Texts for the gate heat map, in addition to the beginnings of a source and a target set and a
    mixture of the two."""
    prompts: tuple[str, ...] = ()
    """Prompts that both backbone and extended model continue at the end."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of these continuations, with the seed of the run; 0 is greedy."""
    chat: Path | None = None
    """Prompts in JSON lines with a key "prompt": at the end both models answer them greedily, with
    the chat template, and the answers that are equal word for word are counted; null: none."""
    chat_tokens: int = Field(default=64, ge=1)
    """Maximum number of tokens of an answer."""
    tasks: tuple[str, ...] = ()
    """Tasks and suites that are measured on both models at the end: names of lm-eval, paper-fr,
    minimal-pairs-fr, cloze-SET, quick, file:PATH; see `evaluation/tasks/registry.py`."""
    task_limit: int | None = Field(default=None, ge=2)
    """Maximum number of items of each task (of each part of a group), the first ones; null: all."""
    task_fewshot: int | None = Field(default=None, ge=0)
    """Number of few-shot examples, as lm-eval's num_fewshot; null: that of the task or suite, which
    is 0 for tasks from files. Tasks that set 0 themselves keep it."""
    task_data: Path | None = None
    """Folder with your own tasks (NAME_LANG.jsonl.gz, or NAME.LANG.jsonl.gz for minimal pairs).
    They take precedence over other tasks with these names. Without `tasks`, all are measured."""

    def num_spliced(self, context_tokens: int) -> int:
        """`spliced_windows`, or its default for windows of `context_tokens`."""
        default = max(1, SPLICED_SET_TOKENS // context_tokens)
        return default if self.spliced_windows is None else self.spliced_windows

    @model_validator(mode="after")
    def _stride_within_context(self) -> Self:
        if self.context_tokens and self.stride_tokens and self.stride_tokens > self.context_tokens:
            raise ValueError("stride_tokens must not be larger than context_tokens")
        return self


class RunConfig(Settings):
    """All settings of one run."""

    model: str = Field(min_length=1)
    """The backbone: a folder, a GGUF file (needs the package gguf), or a name on the Hub."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub; null: its main branch."""
    trust_remote_code: bool = False
    """Allow running the model's own code from the Hub, as in Transformers."""
    method: str = "neutral"
    """A method that `neutral methods` lists (neutral, adapter, lora, finetune, ...), or
    "module:NAME" for one of your own."""
    label: str | None = Field(default=None, min_length=1, pattern=r"^\w[\w.+-]*$")
    """Name of this run in tables; null: the name of the method."""
    budget: float = Field(default=0.20, gt=0)
    """Number of new weights as a share of the backbone's weights, embeddings included; for methods
    that add weights."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation and of the order of rows; which documents are held out does not depend
    on it."""
    start_from: Path | None = None
    """Continue training this extension instead of a new one: the output folder of a finished run,
    or an extension folder, with the same model, method and size."""
    beside: dict[str, Path] = Field(default_factory=dict)
    """Extensions that are active together with the new one, but not trained: a name of your choice
    -> output folder of a finished run, or extension folder, of the same model. All of them are
    saved; the new one is named by its label, or else by its output folder."""
    output: Path
    """Folder for checkpoints, log, extension and record. If it contains the same run, unfinished,
    that is resumed."""
    data: DataSettings
    vocabulary: VocabularySettings = VocabularySettings()
    residues: ResidueSettings = ResidueSettings()
    lora: LoraSettings = LoraSettings()
    scaling: ScalingSettings = ScalingSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("beside", mode="before")
    @classmethod
    def _folders_by_name(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"give a name for each folder: {{french: {value}}}")
        return value

    @model_validator(mode="after")
    def _new_tokens_start_once(self) -> Self:
        if self.start_from is not None and self.vocabulary.start != "pieces":
            raise ValueError(
                f"vocabulary.start: {self.vocabulary.start} has no effect with start_from, whose"
                " new tokens are trained; remove it"
            )
        return self

    @model_validator(mode="after")
    def _targets_have_extensions(self) -> Self:
        if not self.residues.per_target:
            return self
        if len(self.extension_names) < 2:
            raise ValueError("residues.per_target needs two target corpora or more in data.train")
        for key in ("vocabulary.size", "start_from", "beside"):
            if self._sets(key):
                raise ValueError(f"residues.per_target does not go with {key}; remove one of them")
        return self

    @model_validator(mode="after")
    def _stands_beside_another(self) -> Self:
        if not self.beside:
            return self
        for key in ("vocabulary.size", "start_from"):
            if self._sets(key):
                raise ValueError(f"beside does not go with {key}; remove one of them")
        if (name := self.extension_names[0]) in self.beside:
            raise ValueError(f"beside: the new one is called {name} too; choose another label")
        return self

    def _sets(self, key: str) -> bool:
        return bool(self.vocabulary.size if key == "vocabulary.size" else getattr(self, key))

    @property
    def extension_names(self) -> list[str]:
        """Names of the extensions that the run trains, if its result consists of several; else
        empty."""
        if self.beside:
            return [re.sub(r"[^\w-]+", "-", self.label or self.output.resolve().name)]
        if not self.residues.per_target:
            return []
        return [corpus.name for corpus in self.data.train if corpus.role == "target"]

    @property
    def hub_options(self) -> dict[str, Any]:
        """Keyword arguments for loading configuration, weights and tokenizer of `model`."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    @property
    def context_tokens(self) -> int:
        return self.evaluation.context_tokens or self.data.block_tokens

    @property
    def stride_tokens(self) -> int:
        return self.evaluation.stride_tokens or max(1, self.context_tokens // 2)

    @property
    def self_tokens(self) -> int:
        """Approximate number of tokens that the backbone generates for `path: self`."""
        data, training = self.data, self.training
        if data.self_replay.tokens is not None:
            return data.self_replay.tokens
        rows = training.steps * training.batch_rows * training.accumulation
        held_out = 0.0 if data.evaluate else data.held_out_share
        shares = data.self_corpus.share if data.self_corpus else None
        of_source = sum(shares) / 2 if shares else 1.0  # the mean: shares change linearly
        read = rows * data.block_tokens * data.source_share * of_source / (1 - held_out)
        return min(math.ceil(read), MOST_SELF_TOKENS)

    @property
    def num_measurements(self) -> int:
        """Number of evaluations during training, including the one before the first step."""
        return 1 + math.ceil(self.training.steps / self.training.evaluate_every)

    def tokens_to_measure(self, while_training: Iterable[int], evaluate: Iterable[int]) -> int:
        """Number of tokens that are scored in the whole run, from the number of tokens of each set.
        During training, the extended model scores a part of the sets `while_training` in every
        evaluation; at the end, both models score all of `evaluate`."""
        limit = self.evaluation.tokens_while_training
        part = sum(min(num_tokens, limit) for num_tokens in while_training)
        return self.num_measurements * part + 2 * sum(evaluate)


def load_run(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply overrides such as "training.steps=200". Raises a one-line UserError
    for the first invalid setting."""
    return make_run(read_values(path, overrides))


def make_run(values: dict[str, Any]) -> RunConfig:
    """Validate plain values as a run configuration. Raises a UserError for the first invalid
    setting."""
    return checked(RunConfig, values)
