"""The record of a run: each part a class, each field documented by the line under it. No torch.

A change of the schema raises its `version`; `store.py` reads and writes. What was measured on one
evaluation set is in `set_result.py`.
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
    """How both models continue one prompt, with the same seed."""

    prompt: str
    """The text that was given."""
    backbone: str
    """What the backbone adds to it, without the prompt."""
    extended: str
    """What the extended model adds to it, without the prompt."""

    @property
    def is_same(self) -> bool:
        """Whether both add the same, word for word."""
        return self.backbone == self.extended


class TaskScore(Part):
    """Both models on the same items of one task by one metric, and how sure the difference is."""

    name: str = Field(min_length=1)
    """The task: lm-eval's name for it, or one of ours, for example "clams-fr" or "cloze-fr", or its
    file's."""
    suite: str | None = None
    """Suite that it belongs to, for example "paper-fr"; null for a task that was named itself."""
    language: str | None = None
    """Two-letter code of its language; null where not known."""
    role: Literal["source", "target", "none"] = "none"
    """Whether the backbone knows its language or was to learn it; "none" where not known."""
    metric: str = Field(min_length=1)
    """lm-eval's name of the score, for example "acc" or "acc_norm"."""
    unit: Literal["share", "score"]
    """share: of items answered correctly, 0 to 1. score: anything else."""
    direction: Literal["lower", "higher"]
    """Which is better."""
    num_items: int = Field(ge=1)
    """Items that both models answered; in a group of tasks all items count alike."""
    backbone: float
    """Score of the backbone."""
    extended: float
    """Score of the extended model."""
    difference: float
    """Extended minus backbone."""
    low: float
    """Lower end of the 95 % interval of the difference, over the paired items."""
    high: float
    """Upper end of that interval."""
    p_value: float | None = Field(ge=0, le=1)
    """Two-sided, of no difference; null where the interval has none."""
    interval: str
    """How interval and p-value were found."""
    chance: float | None = Field(default=None, ge=0, le=1)
    """Score of guessing: the mean of 1 / number of choices; null where there is nothing to choose
    from."""
    num_fewshot: int = Field(ge=0)
    """Few-shot examples before each item; the most of any part of a group."""
    num_truncated: int = Field(ge=0)
    """Prompts, one per answer, that were longer than the context and lost their beginning."""
    key: str
    """Hash of items, prompts and metric: two scores compare only where it agrees."""


class GateText(Part):
    """How open each block gate is on each token of one short text."""

    name: str = Field(min_length=1)
    """Where the text comes from: an evaluation set, "code-switched", or "prompt 1"."""
    kind: Literal["source", "target", "code-switched", "own"]
    """What kind of text it is."""
    tokens: list[str]
    """(T) the tokens as pieces of the text: joined, they are the text."""
    layers: list[LayerNumber]
    """(L) number of each extended layer."""
    gates: list[list[float]]
    """(L, T) g at each layer and token; exactly 0 means that the layer is the backbone's."""

    @model_validator(mode="after")
    def _one_gate_for_each_layer_and_token(self) -> Self:
        lengths = [len(row) for row in self.gates]
        if lengths != [len(self.tokens)] * len(self.layers):
            raise ValueError(f"gates must be {len(self.layers)} rows of {len(self.tokens)} numbers")
        return self


class Cost(Part):
    """What the run took; null where it was not measured."""

    tokens: int | None = Field(default=None, ge=0)
    """Tokens trained on, padding not counted."""
    seconds: float | None = Field(default=None, ge=0)
    """Wall time of the training steps, without evaluation."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """Training throughput over that time."""
    step_seconds: float | None = Field(default=None, ge=0)
    """Median time of an optimiser step, the first ones left out."""
    wall_seconds: float | None = Field(default=None, ge=0)
    """Wall time of the process that finished the run: loading, training, measuring, saving."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that it was given; times compare only at equal numbers and equal load."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    """Peak memory until training ended: of the accelerator, else of the process."""
    trainable_weights: int | None = Field(default=None, ge=0)
    """Weights that received gradients."""
    new_weights: int | None = Field(default=None, ge=0)
    """Weights that were added to the backbone."""
    stored_weights: int | None = Field(default=None, ge=0)
    """Weights in the folder that is saved: the extension's alone, or the whole model's."""
    backbone_weights: int | None = Field(default=None, ge=0)
    """Weights of the backbone, embeddings counted."""

    @property
    def new_share(self) -> float | None:
        """New weights as a share of the backbone's; None where either is not known."""
        if self.new_weights is None or not self.backbone_weights:
            return None
        return self.new_weights / self.backbone_weights


class Provenance(Part):
    """Where a record comes from: enough to run it again."""

    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor; no host name."""
    device: str
    """What it ran on, for example "cpu" or the name of the accelerator."""
    packages: dict[str, str | None]
    """Version of each package that can change a number; null where it is not installed."""
    git_commit: str | None
    """Commit of the checkout, with "-dirty" if files had changed; null for an installed package."""
    seed: int | None
    """Seed of the run; null where nothing was random."""
    tokenizer_key: str | None
    """Key of the tokenizer, as in the token files; null where not known."""


Point = dict[str, int | float]
"""Numbers measured at one step of training, by name."""


NUMBER = (int, float)
READ_SETTINGS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("label", "model", "revision", "output", "scaling.trained"), (str,)),
    **dict.fromkeys(("seed", "training.steps", "data.block_tokens"), (int,)),
    **dict.fromkeys(("evaluation.context_tokens", "evaluation.stride_tokens"), (int,)),
    **dict.fromkeys(("budget", "data.source_share", "scaling.share"), NUMBER),
    "training.learning_rate": NUMBER,
    **dict.fromkeys(("scaling", "training", "data", "evaluation", "vocabulary"), ()),
}
"""Settings that a report reads, and what they are where they are not null; of sections, nothing but
their keys."""


class Record(Part):
    """One run, whole."""

    format: Literal["neutral-residues/record"] = "neutral-residues/record"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["extend", "evaluate"]
    """extend: training and then evaluation. evaluate: evaluation only."""
    created: Created = NOW
    """When the record was made, UTC, ISO 8601."""
    method: str = Field(min_length=1)
    """Name in the table of methods, for example "neutral" or "lora"."""
    sets: dict[str, SetResult] = Field(default={})
    """Evaluation set -> what was measured on it at the end."""
    self_text: SelfText | None = None
    """What the backbone wrote itself as source text; null where it wrote none."""
    spliced: Spliced | None = None
    """A source and a target set in turns; null where that was not measured."""
    validation_sets: dict[str, EvaluationSet] = Field(default={})
    """Sets measured while training only, to choose settings by; the numbers are in `curve`."""
    curve: list[Point] = Field(default=[])
    """Measurements during training: each point has "step" and any named numbers."""
    samples: list[Sample] = Field(default=[])
    """Continuations by both models."""
    chat: list[Sample] = Field(default=[])
    """Greedy answers of both models to chat prompts, through the chat template."""
    gates: list[GateText] = Field(default=[])
    """Gates over short texts; empty for a method without block gates."""
    tasks: list[TaskScore] = Field(default=[])
    """Scores of tasks, each task once by a metric, its main one first."""
    promise: Promise | None = None
    """What the extension's thresholds promise; null where it is not calibrated."""
    measured_promise: Promise | None = None
    """The same while it was measured; null: as it was trained."""
    cost: Cost = Cost()
    """Time, memory and weights."""
    provenance: Provenance
    """Code, machine and seed."""
    config: dict[str, Any] = Field(default={})
    """The fully resolved run configuration."""

    @property
    def label(self) -> str:
        """The run's name in tables, and whether it was measured calibrated."""
        name = str(self.config.get("label") or self.method)
        return f"{name}, calibrated" if self.measured_promise else name

    @property
    def is_current(self) -> bool:
        """Whether the extension's thresholds are those that it was measured with."""
        return self.promise == self.measured_promise

    @property
    def main_scores(self) -> list[TaskScore]:
        """One score for each task."""
        return list({task.name: task for task in reversed(self.tasks)}.values())[::-1]

    @property
    def same_answers_share(self) -> float | None:
        """Of chat prompts, those that both models answer word for word alike; None without any."""
        return statistics.fmean(sample.is_same for sample in self.chat) if self.chat else None

    @property
    def validation_bits(self) -> float | None:
        """Bits per byte at the end of training, mean over the target sets to validate on; None if
        there are none. Learning rates are chosen by it."""
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
    """A run of a comparison that failed: why, in one line."""

    format: Literal["neutral-residues/failure"] = "neutral-residues/failure"
    """Says that the file is ours."""
    version: Literal[1] = 1
    """Version of this schema."""
    label: str = Field(min_length=1)
    """The run's name in tables."""
    reason: str = Field(min_length=1)
    """The error, in one line."""
    created: Created = NOW
    """When it failed, UTC, ISO 8601."""
