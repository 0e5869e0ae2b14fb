"""The record of a run: a class for each part, and a docstring under each field. No torch.

A change of the schema raises its `version`. `store.py` reads and writes records; the results of one
evaluation set are in `set_result.py`.
"""

import statistics
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, field_validator, model_validator

from neutral_residues.config.base import flat
from neutral_residues.results.base import Part
from neutral_residues.results.promise import Promise
from neutral_residues.results.self_text import SelfText
from neutral_residues.results.set_result import EvaluationSet, LayerNumber, SetResult
from neutral_residues.results.spliced import Spliced

Created = Annotated[AwareDatetime, AfterValidator(lambda created: created.astimezone(UTC))]
NOW: Any = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))


class Sample(Part):
    """Continuations of one prompt by both models, with the same seed."""

    prompt: str
    """The prompt."""
    backbone: str
    """Continuation by the backbone, without the prompt."""
    extended: str
    """Continuation by the extended model, without the prompt."""

    @property
    def is_same(self) -> bool:
        """Whether both continuations are equal."""
        return self.backbone == self.extended


class TaskScore(Part):
    """Scores of both models on the same items of one task, by one metric, with the uncertainty of
    their difference."""

    name: str = Field(min_length=1)
    """Name of the task in lm-eval, or of a task of ours (for example "clams-fr" or "cloze-fr"), or
    of its file."""
    suite: str | None = None
    """Suite through which it was chosen, for example "paper-fr"; null if chosen by its own name."""
    language: str | None = None
    """Two-letter code of its language; null if not known."""
    role: Literal["source", "target", "none"] = "none"
    """Whether its language is source or target language of the run; "none" if not known."""
    metric: str = Field(min_length=1)
    """Name of the metric in lm-eval, for example "acc" or "acc_norm"."""
    unit: Literal["share", "score"]
    """share: share of items answered correctly, 0 to 1. score: anything else."""
    direction: Literal["lower", "higher"]
    """Whether lower or higher scores are better."""
    num_items: int = Field(ge=1)
    """Items that both models answered; all items of a group of tasks have the same weight."""
    backbone: float
    """Score of the backbone."""
    extended: float
    """Score of the extended model."""
    difference: float
    """Extended minus backbone."""
    low: float
    """Lower end of the 95 % confidence interval of the difference (paired by item)."""
    high: float
    """Upper end of that interval."""
    p_value: float | None = Field(ge=0, le=1)
    """Two-sided p-value for no difference; null if the method of the interval gives none."""
    interval: str
    """How interval and p-value were computed."""
    chance: float | None = Field(default=None, ge=0, le=1)
    """Score of random guessing: the mean of 1 / number of choices; null if items have no
    choices."""
    num_fewshot: int = Field(ge=0)
    """Few-shot examples before each item; for a group of tasks, the largest number."""
    num_truncated: int = Field(ge=0)
    """Prompts (one per answer) whose beginning was cut off because they exceed the context."""
    key: str
    """Hash of items, prompts and metric: only scores with the same key are comparable."""


class GateText(Part):
    """The block gates on each token of one short text."""

    name: str = Field(min_length=1)
    """Name of the text: that of its evaluation set, "code-switched", or for example "text 1"."""
    kind: Literal["source", "target", "code-switched", "own"]
    """Kind of text; "own" is a text of the run file."""
    tokens: list[str]
    """(T) the texts of the tokens; joined, they are the whole text."""
    layers: list[LayerNumber]
    """(L) index of each extended layer."""
    gates: list[list[float]]
    """(L, T) gate g of each layer at each token; where it is exactly 0, the layer computes what the
    backbone's does."""

    @model_validator(mode="after")
    def _one_gate_for_each_layer_and_token(self) -> Self:
        lengths = [len(row) for row in self.gates]
        if lengths != [len(self.tokens)] * len(self.layers):
            raise ValueError(f"gates must be {len(self.layers)} rows of {len(self.tokens)} numbers")
        return self


class Cost(Part):
    """Time, memory and number of weights of a run; null if not measured."""

    tokens: int | None = Field(default=None, ge=0)
    """Training tokens, without padding."""
    seconds: float | None = Field(default=None, ge=0)
    """Wall time of the training steps in seconds, without evaluation."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """Training throughput over that time."""
    step_seconds: float | None = Field(default=None, ge=0)
    """Median time of an optimiser step in seconds, without the first steps."""
    wall_seconds: float | None = Field(default=None, ge=0)
    """Wall time in seconds of the process that finished the run: loading, training, measuring and
    saving."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of the process; times are only comparable with equal threads and load."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    """Peak memory until the end of training: of the accelerator, or else of the process."""
    trainable_weights: int | None = Field(default=None, ge=0)
    """Number of trained weights."""
    new_weights: int | None = Field(default=None, ge=0)
    """Number of weights that were added to the backbone."""
    stored_weights: int | None = Field(default=None, ge=0)
    """Number of weights that were saved: those of the extension, or of the whole model."""
    backbone_weights: int | None = Field(default=None, ge=0)
    """Number of weights of the backbone, embeddings included."""

    @property
    def new_share(self) -> float | None:
        """New weights as a share of the backbone's; None if either is not known."""
        if self.new_weights is None or not self.backbone_weights:
            return None
        return self.new_weights / self.backbone_weights


class Provenance(Part):
    """The code and machine that made a record: enough to reproduce it."""

    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor, without the host name."""
    device: str
    """The device that models ran on: "cpu" or the name of the accelerator."""
    packages: dict[str, str | None]
    """Version of each package that can change results; null if it is not installed."""
    git_commit: str | None
    """Commit of the checkout, with "-dirty" if files had changed; null for an installed package."""
    seed: int | None
    """Seed of the run; null if nothing was random."""
    tokenizer_key: str | None
    """Hash of the backbone's tokenizer, as in the files of tokenised text; null if not known."""


Point = dict[str, int | float]
"""Name -> number measured at one step of training."""


NUMBER = (int, float)
READ_SETTINGS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("label", "model", "revision", "output", "scaling.trained"), (str,)),
    **dict.fromkeys(("seed", "training.steps", "data.block_tokens"), (int,)),
    **dict.fromkeys(("evaluation.context_tokens", "evaluation.stride_tokens"), (int,)),
    **dict.fromkeys(("budget", "data.source_share", "scaling.share"), NUMBER),
    "training.learning_rate": NUMBER,
    **dict.fromkeys(("scaling", "training", "data", "evaluation", "vocabulary"), ()),
}
"""Settings that a report reads -> their types, if they are not null. Sections have none: they must
be mappings."""


class Record(Part):
    """All results of a run: the contents of `record.json`."""

    format: Literal["neutral-residues/record"] = "neutral-residues/record"
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["extend", "evaluate"]
    """extend: training and then evaluation. evaluate: evaluation only."""
    created: Created = NOW
    """Time at which the record was made, UTC, ISO 8601."""
    method: str = Field(min_length=1)
    """Name of the method, for example "neutral" or "lora"."""
    sets: dict[str, SetResult] = Field(default={})
    """Evaluation set -> results of both models on it, at the end."""
    beginnings: dict[str, SetResult] = Field(default={})
    """Evaluation set -> results on the first tokens of its documents, each read by itself."""
    self_text: SelfText | None = None
    """Source text that the backbone generated for the training; null if it generated none."""
    spliced: Spliced | None = None
    """Results on text that alternates between a source and a target set; null if not measured."""
    validation_sets: dict[str, EvaluationSet] = Field(default={})
    """Sets that are only measured during training, to choose settings; results are in `curve`."""
    curve: list[Point] = Field(default=[])
    """Measurements during training: each point has "step", and numbers by name."""
    samples: list[Sample] = Field(default=[])
    """Continuations of the prompts in the run file by both models."""
    chat: list[Sample] = Field(default=[])
    """Greedy answers of both models to chat prompts, with the chat template."""
    gates: list[GateText] = Field(default=[])
    """Gates on short texts, for the heat map; empty for a method without block gates."""
    tasks: list[TaskScore] = Field(default=[])
    """Scores of tasks. A task has one entry per metric, the main one first."""
    promise: Promise | None = None
    """Promise of the extension's current thresholds; null if it is not calibrated."""
    measured_promise: Promise | None = None
    """Promise of the thresholds with which it was measured; null: measured without thresholds."""
    cost: Cost = Cost()
    """Time, memory and number of weights."""
    provenance: Provenance
    """Code, machine and seed."""
    config: dict[str, Any] = Field(default={})
    """The fully resolved run configuration."""

    @property
    def label(self) -> str:
        """Name of the run in tables, which says too if it was measured with thresholds."""
        name = str(self.config.get("label") or self.method)
        return f"{name}, calibrated" if self.measured_promise else name

    @property
    def is_current(self) -> bool:
        """Whether the extension was measured with its current thresholds."""
        return self.promise == self.measured_promise

    @property
    def main_scores(self) -> list[TaskScore]:
        """The score of each task by its main metric."""
        return list({task.name: task for task in reversed(self.tasks)}.values())[::-1]

    @property
    def same_answers_share(self) -> float | None:
        """Share of the chat prompts for which both models give the same answer, word for word; None
        without prompts."""
        return statistics.fmean(sample.is_same for sample in self.chat) if self.chat else None

    @property
    def validation_bits(self) -> float | None:
        """Bits per byte at the end of training, mean over the target sets for validation; None
        without such sets. The best learning rate is the one for which it is lowest."""
        sets = self.validation_sets.items()
        keys = [f"bits_per_byte/{name}" for name, text in sets if text.role == "target"]
        measured = [point for point in self.curve if keys and all(key in point for key in keys)]
        if not measured:
            return None
        last = max(measured, key=lambda point: point["step"])
        return statistics.fmean(last[key] for key in keys)

    @field_validator("curve")
    @classmethod
    def _every_point_has_its_step(cls, curve: list[Point]) -> list[Point]:
        if any("step" not in point for point in curve):
            raise ValueError('every point of the curve needs "step"')
        return curve

    @field_validator("config")
    @classmethod
    def _settings_have_their_types(cls, config: dict[str, Any]) -> dict[str, Any]:
        for key, value in flat(config).items():
            kinds = READ_SETTINGS.get(key)
            if kinds is not None and value not in (None, {}) and type(value) not in kinds:
                raise ValueError(f"{key} is {type(value).__name__}")
        return config

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, tasks: list[TaskScore]) -> list[TaskScore]:
        names = [f"{task.name} by {task.metric}" for task in tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task twice: {', '.join(twice)}")
        return tasks


class Failure(Part):
    """A run of a comparison that failed: the contents of `failure.json`."""

    format: Literal["neutral-residues/failure"] = "neutral-residues/failure"
    """Identifies the kind of file."""
    version: Literal[1] = 1
    """Version of this schema."""
    label: str = Field(min_length=1)
    """Name of the run in tables."""
    reason: str = Field(min_length=1)
    """The error, in one line."""
    created: Created = NOW
    """Time of the failure, UTC, ISO 8601."""
