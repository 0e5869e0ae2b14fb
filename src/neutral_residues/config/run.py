"""The run file: everything that one run needs, in one YAML file, checked before anything expensive
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
"""Tokens that a backbone writes itself, unless told otherwise; a longer run reads them again."""


class VocabularySettings(Settings):
    """New tokens for the target language; those of the backbone keep their ids, and source text its
    tokens."""

    size: int = Field(default=0, ge=0)
    """Number of new tokens; `neutral vocabulary` prints what each size saves."""
    keep: Keep = "script"
    """What protects source text. script: every new token contains a letter of a script that the
    source does not have, so no text without such letters changes. unseen, for a target in the
    source's script: no new token occurs in the source corpora of data.train."""
    start: Literal["pieces", "distilled", "random"] = "pieces"
    """Initial weights of a new token. pieces: the mean over the tokens that it replaces. distilled:
    the same for the output; its embedding is trained first, until the backbone reads the target
    text as it does in its own tokens. random: at random."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in fields if getattr(self, name) != fields[name].default]
        if self.size == 0 and idle:
            raise ValueError(f"{idle[0]} has no effect with size 0; set size, or remove it")
        return self


class ResidueSettings(Settings):
    """The adapter of the methods `neutral`, its variants, and `adapter`. Settings that
    `NeutralResiduesConfig` has too have the same name there."""

    placement: Placement = "ffn"
    """The block that the adapters run parallel to."""
    head_rank: int | None = Field(default=None, ge=0)
    """Rank of the residue on the output head, in the same budget; 0 leaves it out, null means 64,
    or what a quarter of the new weights allows."""
    block_gate: Gate = "relu"
    """The gate, one number per token. The method `adapter` has none."""
    activation: str | None = None
    """Activation inside the adapter, by its Transformers name; null takes the backbone's own."""
    init: Init = "usual"
    """Initial variance of the inner projections: usual 2/D, paper 1/(D L), for width D and L
    adapters."""
    gate_start: GateStart = "open"
    """open: every gate starts at 1 on every token; random: half of all tokens start with a closed
    gate, and the gate has no bias; half: a sigmoid gate without bias that starts at 1/2 on every
    token. A gate that reads tokens starts open."""
    gate_reads: GateReads = "tokens"
    """tokens: one gate for all layers and the head, which reads the last 16 tokens; layer (the
    paper): each layer has a gate that reads its input."""
    layers_to_transform: tuple[int, ...] | None = None
    """Layers that get an adapter, counted from 0; null means all, but not the first of four or more
    where gates read layers."""
    local_loss: LocalLoss = "l1"
    """l1: size of the gated output on source tokens, relative to the block's own; cross_entropy:
    the sigmoid gate as a classifier of source and target."""
    local_loss_weight: float = Field(default=0.06, ge=0)
    """Weight of the local loss, alpha: a larger one forgets less, and learns less."""
    gate_learning_rate_factor: float = Field(default=2.0, gt=0)
    """Learning rate of the gates, as a multiple of the projections'; divided by the root mean
    square of what a gate reads, where that is below 1."""
    per_target: bool = False
    """Train one extension for each target corpus, of this budget and named after the corpus; text
    of the other targets is source text for it. The result has all of them on."""
    source_noise: float = Field(default=0.5, ge=0, le=1)
    """Share of the source rows (without spliced ones) in which tokens are replaced at random, so
    that gates stay closed on unusual text."""

    @model_validator(mode="after")
    def _choices_go_together(self) -> Self:
        names = ("block_gate", "gate_start", "local_loss")
        check_choices(**{name: getattr(self, name) for name in names})
        return self


class LoraSettings(Settings):
    """The method `lora` and its variants; the rank follows from the budget."""

    modules: Literal["all-linear", "mlp"] = "all-linear"
    """Which linear layers get a low-rank update."""
    alpha_over_rank: float = Field(default=2.0, gt=0)
    """LoRA's alpha divided by its rank."""
    embedding_learning_rate_factor: float = Field(default=0.2, gt=0)
    """Learning rate of embeddings and head, as a multiple of the low-rank updates'."""
    gate_learning_rate_factor: float = Field(default=5.0, gt=0)
    """Learning rate of the gates of `disel`, as a multiple of the low-rank updates'."""


class ScalingSettings(Settings):
    """The methods that scale what a finished run has learnt: `wise-ft` (of `finetune`),
    `lora-scaled` and `adapter-scaled`."""

    share: float = Field(default=0.5, ge=0, le=1)
    """Factor on what was learnt; 0 is the backbone, 1 the trained model."""
    trained: Path | None = None
    """Output folder of that finished run; `neutral compare` fills it in."""


class TrainingSettings(Settings):
    """The loop; the same for every method."""

    steps: int = Field(default=1000, ge=1)
    """Optimiser steps."""
    batch_rows: int = Field(default=8, ge=1)
    """Rows per forward pass and device."""
    accumulation: int = Field(default=1, ge=1)
    """Forward passes per optimiser step."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null takes the method's own recipe, scaled to the backbone's width."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps of linear warm-up."""
    final_learning_rate_share: float = Field(default=0.1, ge=0, le=1)
    """The cosine ends at this share of the peak."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of KL(backbone || model) per source token, added to the language-modelling loss: pulls
    any method toward the backbone on source rows."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast around float32 trained weights; auto takes it on a GPU that has it, and on
    a CPU with AVX512-BF16 or AMX for backbones at least 512 wide."""
    frozen_weights: Literal["auto", "float32", "bfloat16", "int8", "nf4"] = "auto"
    """How weights that do not train are stored; trained ones are always float32. auto follows
    `precision`; int8 and nf4 (8 and 4 bits) need bitsandbytes, and backbone and extended model are
    then both measured on the quantised weights."""
    compile: bool = False
    """Use torch.compile: the first step takes a minute or more, each later one less."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines in the log."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between evaluations."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many checkpoints stay on disk."""
    report_to: tuple[str, ...] = ()
    """Trackers that Transformers' Trainer knows: tensorboard, wandb, trackio, ..."""


class EvaluationSettings(Settings):
    """How backbone and extended model are measured."""

    context_tokens: int | None = Field(default=None, ge=1)
    """Tokens in a window; null takes block_tokens."""
    stride_tokens: int | None = Field(default=None, ge=1)
    """New tokens scored in each window; null takes half of the context."""
    batch_rows: int = Field(default=16, ge=1)
    """Windows per forward pass; fewer where their logits would take more than half a GiB."""
    tokens_while_training: int = Field(default=20_000, ge=1)
    """About how many tokens of each set are measured during training; at the end all are."""
    kl: bool = False
    """Also measure the KL divergence from the backbone, on every token at the end."""
    spliced_windows: int = Field(default=64, ge=0)
    """Windows in which the first source and the first target set alternate, measured at the end;
    0: none."""
    gate_texts: tuple[str, ...] = ()
    """Texts for the gate heat map, besides beginnings of a source and target set and a mixture."""
    prompts: tuple[str, ...] = ()
    """Prompts that backbone and extended model continue at the end, side by side."""
    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of these continuations; 0 is greedy. Both use the run's seed."""
    chat: Path | None = None
    """JSON lines with a key "prompt": at the end both models answer greedily through the chat
    template, and answers equal to the backbone's word for word are counted; null: none."""
    chat_tokens: int = Field(default=64, ge=1)
    """At most this many tokens per answer."""
    tasks: tuple[str, ...] = ()
    """Tasks and suites for backbone and extended model at the end: lm-eval's names, paper-fr,
    minimal-pairs-fr, cloze-SET, quick, file:PATH; see `evaluation/tasks/registry.py`."""
    task_limit: int | None = Field(default=None, ge=2)
    """Take this many items of each task (each part of a group), from its beginning; null: all."""
    task_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each item, as lm-eval's num_fewshot; null: as a task or suite says,
    which is none for files. Tasks that say 0 keep it."""
    task_data: Path | None = None
    """Folder with tasks of your own (NAME_LANG.jsonl.gz, or NAME.LANG.jsonl.gz for minimal pairs),
    which take precedence over others of these names; without `tasks`, all of them are measured."""

    @model_validator(mode="after")
    def _stride_within_context(self) -> Self:
        if self.context_tokens and self.stride_tokens and self.stride_tokens > self.context_tokens:
            raise ValueError("stride_tokens must not be larger than context_tokens")
        return self


class RunConfig(Settings):
    """Everything that one run needs."""

    model: str = Field(min_length=1)
    """The backbone: a folder, a GGUF file (package gguf), or a name on the Hub."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hub."""
    trust_remote_code: bool = False
    """Allow the model's own code from the Hub to run."""
    method: str = "neutral"
    """A method that `neutral methods` lists (neutral, adapter, lora, finetune, ...), or
    "module:NAME" for one of your own."""
    label: str | None = Field(default=None, min_length=1, pattern=r"^\w[\w.+-]*$")
    """Name of this run in tables; null takes the method's name."""
    budget: float = Field(default=0.20, gt=0)
    """New weights as a share of the backbone's, embeddings counted; for methods that add some."""
    seed: int = Field(default=0, ge=0)
    """Seed of initialisation and order of rows; what is held out does not depend on it."""
    start_from: Path | None = None
    """Continue training this extension instead of a new one: the output folder of a finished run,
    or an extension folder, of the same model, method and size."""
    beside: dict[str, Path] = Field(default_factory=dict)
    """Extensions that stay active and unchanged beside the new one: a name of your choice -> output
    folder of a finished run, or extension folder, of the same model. All of them are saved, the new
    one under its label or else its output folder's name."""
    output: Path
    """Folder for checkpoints, log, extension and record; resumed if it holds this same run."""
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
        """Of the extensions that it trains, where a folder will hold several; else empty."""
        if self.beside:
            return [re.sub(r"[^\w-]+", "-", self.label or self.output.resolve().name)]
        if not self.residues.per_target:
            return []
        return [corpus.name for corpus in self.data.train if corpus.role == "target"]

    @property
    def hub_options(self) -> dict[str, Any]:
        """Keyword arguments for everything that is loaded under the name `model`."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    @property
    def context_tokens(self) -> int:
        return self.evaluation.context_tokens or self.data.block_tokens

    @property
    def stride_tokens(self) -> int:
        return self.evaluation.stride_tokens or max(1, self.context_tokens // 2)

    @property
    def self_tokens(self) -> int:
        """About how many tokens the backbone writes for a corpus with `path: self`."""
        data, training = self.data, self.training
        if data.self_replay.tokens is not None:
            return data.self_replay.tokens
        rows = training.steps * training.batch_rows * training.accumulation
        held_out = 0.0 if data.evaluate else data.held_out_share
        shares = data.self_corpus.share if data.self_corpus else None
        of_source = sum(shares) / 2 if shares else 1.0  # it changes evenly, if at all
        read = rows * data.block_tokens * data.source_share * of_source / (1 - held_out)
        return min(math.ceil(read), MOST_SELF_TOKENS)

    @property
    def num_measurements(self) -> int:
        """While training, the one before the first step included."""
        return 1 + math.ceil(self.training.steps / self.training.evaluate_every)

    def tokens_to_measure(self, while_training: Iterable[int], evaluate: Iterable[int]) -> int:
        """Tokens that are scored in the whole run, from those of each set: the extended model on a
        part of the former again and again, both models on all of the latter at the end."""
        limit = self.evaluation.tokens_while_training
        part = sum(min(num_tokens, limit) for num_tokens in while_training)
        return self.num_measurements * part + 2 * sum(evaluate)


def load_run(path: Path, overrides: tuple[str, ...] = ()) -> RunConfig:
    """Read a run file and apply overrides such as "training.steps=200"; a UserError of one line for
    the first thing that is wrong."""
    return make_run(read_values(path, overrides))


def make_run(values: dict[str, Any]) -> RunConfig:
    """A checked configuration from plain values; a UserError for the first thing that is wrong."""
    return checked(RunConfig, values)
