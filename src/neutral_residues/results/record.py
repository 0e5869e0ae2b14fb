"""What the record of a run holds: each part a class, each field documented by the line under it. No
torch.

A change raises `VERSION`; `results.py` reads and writes.
"""

from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, field_validator, model_validator

FORMAT: Literal["neutral-residues/record"] = "neutral-residues/record"
VERSION: Literal[3] = 3
FAILURE_FORMAT: Literal["neutral-residues/failure"] = "neutral-residues/failure"

Of = Literal["backbone", "extended", "difference"]
Direction = Literal["lower", "higher", "none"]
TokenKind = Literal[
    "end of text",
    "parts of letters",
    "white space",
    "punctuation",
    "digits",
    "other script",
    "names",
    "frequent words",
    "rare words",
]
"""Kinds of tokens, each token being of one; `token_classes.py` says by what rule."""


class Part(BaseModel):
    """Base of all parts: unknown keys are errors, values never change, numbers are finite."""

    # "constants" keeps a NaN hidden in a free-form dict visible, so that writing refuses it instead
    # of storing null.
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        use_attribute_docstrings=True,
    )


class Metric(Part):
    """One measured number."""

    name: str = Field(min_length=1)
    """What was measured, for example "bits_per_byte", "forgetting", "neutral_tokens"."""
    of: Of
    """Which model: the backbone, the extended model, or the difference between the two."""
    set: str = Field(min_length=1)
    """Name of the evaluation set."""
    role: Literal["source", "target"]
    """source: what the backbone knows. target: what it was to learn."""
    layer: int | None = None
    """Number of the transformer layer; null for the whole model."""
    value: float
    """The number, in `unit`."""
    unit: str = Field(min_length=1)
    """For example "bits/byte", "nats/token", "percent", "share" (0 to 1)."""
    direction: Direction
    """Whether lower or higher is better; "none" where neither is."""
    num_bytes: int = Field(ge=0)
    """UTF-8 bytes of text that the number was measured on."""
    num_tokens: int = Field(ge=0)
    """Tokens that the number was measured on."""


class Sample(Part):
    """How both models continue one prompt, with the same seed."""

    prompt: str
    """The text that was given."""
    backbone: str
    """What the backbone adds to it, without the prompt."""
    extended: str
    """What the extended model adds to it, without the prompt."""


class TaskScore(Part):
    """Both models on the same items of one task, and how sure the difference is."""

    name: str = Field(min_length=1)
    """The task: lm-eval's name for it, or one of ours, for example "clams-fr" or "cloze-fr"."""
    suite: str | None = None
    """Suite that brought it in, for example "paper-fr"; null for a task that was named itself."""
    language: str | None = None
    """Two-letter code of its language; null where not known."""
    role: Literal["source", "target", "none"] = "none"
    """Whether its language is what the backbone knows or what it was to learn; "none" where not
    known."""
    metric: str = Field(min_length=1)
    """lm-eval's name of the score, for example "acc" or "acc_norm"."""
    unit: Literal["share", "score"]
    """share: of items answered rightly, 0 to 1, each item being right or wrong. score: anything
    else."""
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
    num_fewshot: int = Field(ge=0)
    """Solved examples in front of each item; the most of any part of a group."""
    num_truncated: int = Field(ge=0)
    """Prompts, each with one answer, that were longer than the model's context and lost their
    beginning."""
    key: str
    """Hash of items, prompts and metric: two scores compare only where it agrees."""


class EvaluationSet(Part):
    """A text that was measured: two records compare only where these agree."""

    name: str = Field(min_length=1)
    """As in the metrics, or in the curve."""
    role: Literal["source", "target"]
    """source: what the backbone knows. target: what it was to learn."""
    use: Literal["evaluate", "validate"]
    """evaluate: measured at the end. validate: measured while training, to choose settings by."""
    key: str
    """Hash of its tokens: the same text under the same tokenizer."""
    num_bytes: int = Field(ge=0)
    """UTF-8 bytes of text."""
    num_tokens: int = Field(ge=0)
    """Tokens, end-of-text included."""
    num_documents: int = Field(ge=0)
    """Documents."""


class GateText(Part):
    """How open each block gate is on each token of one short text."""

    name: str = Field(min_length=1)
    """Where the text comes from: an evaluation set, "code-switched", or "prompt 1"."""
    kind: Literal["source", "target", "code-switched", "own"]
    """What kind of text it is."""
    tokens: list[str]
    """(T) the tokens as pieces of the text: joined, they are the text."""
    layers: list[int]
    """(L) number of each extended layer."""
    gates: list[list[float]]
    """(L, T) g at each layer and token; exactly 0 means that the layer is the backbone's."""

    @model_validator(mode="after")
    def _one_gate_for_each_layer_and_token(self) -> Self:
        shape = (len(self.layers), {len(self.tokens)})
        if (len(self.gates), {len(row) for row in self.gates} or {len(self.tokens)}) != shape:
            raise ValueError(f"gates must be {len(self.layers)} rows of {len(self.tokens)} numbers")
        return self


class TokenClass(Part):
    """What the tokens of one kind contribute to the bits per byte of a set; the contributions of
    all add up to it."""

    kind: TokenKind
    """Which kind."""
    num_types: int = Field(ge=1)
    """How many different tokens of that kind occur."""
    num_tokens: int = Field(ge=1)
    """How often they occur together."""
    backbone: float = Field(ge=0)
    """Their bits under the backbone, over all bytes of the set."""
    extended: float = Field(ge=0)
    """The same under the extended model."""


class TokenChange(Part):
    """One token and what it changed."""

    text: str
    """The token as text."""
    num_tokens: int = Field(ge=1)
    """How often it occurs in the set."""
    change: float
    """Its bits, extended minus backbone, over all bytes of the set."""


class DocumentChange(Part):
    """One document and how much worse it got."""

    number: int = Field(ge=0)
    """Its place in the set, from 0."""
    num_bytes: int = Field(ge=1)
    """UTF-8 bytes of its text."""
    backbone: float = Field(ge=0)
    """Bits per byte of this document under the backbone."""
    extended: float = Field(ge=0)
    """The same under the extended model."""
    excerpt: str = Field(max_length=200)
    """How its text begins."""


class Breakdown(Part):
    """Why the bits per byte of one set moved: by kind of token, by token and by document."""

    set: str = Field(min_length=1)
    """Name of the evaluation set."""
    role: Literal["source", "target"]
    """source: what the backbone knows. target: what it was to learn."""
    classes: list[TokenClass]
    """Every kind that occurs."""
    num_types: int = Field(ge=1)
    """How many different tokens occur."""
    num_carriers: int = Field(ge=0)
    """The fewest different tokens that carry half of all change, rises and falls alike; 0 where
    nothing changed."""
    carriers_share: float = Field(ge=0, le=1)
    """Share of the set's tokens that they are."""
    carriers: list[TokenChange]
    """The first of them, largest change first."""
    is_concentrated: bool
    """Whether so few and so rare tokens carry it that the set's number says little about its
    text."""
    documents: list[DocumentChange]
    """Documents whose bits per byte rose most (or fell least), the worst first."""

    @property
    def change(self) -> float:
        """Bits per byte of the set, extended minus backbone."""
        return sum(c.extended - c.backbone for c in self.classes)


class Cost(Part):
    """What the run took; null where it was not measured."""

    tokens: int | None = Field(default=None, ge=0)
    """Tokens trained on, padding not counted."""
    seconds: float | None = Field(default=None, ge=0)
    """Wall time of the training steps, evaluation not counted."""
    tokens_per_second: float | None = Field(default=None, ge=0)
    """Training throughput over that time."""
    step_seconds: float | None = Field(default=None, ge=0)
    """Median time of an optimiser step, the first ones left out."""
    wall_seconds: float | None = Field(default=None, ge=0)
    """Wall time of the whole process that finished the run: loading, training, measuring,
    saving."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads that it was given; times compare only at equal numbers and equal load."""
    peak_memory_bytes: int | None = Field(default=None, ge=0)
    """The most memory held at once until training ended: of the accelerator, or of the process
    where there is none."""
    trainable_weights: int | None = Field(default=None, ge=0)
    """Weights that received gradients."""
    new_weights: int | None = Field(default=None, ge=0)
    """Weights that were added to the backbone."""
    stored_weights: int | None = Field(default=None, ge=0)
    """Weights in the folder that is saved: the extension's alone, or the whole model's."""
    backbone_weights: int | None = Field(default=None, ge=0)
    """Weights of the backbone, embeddings counted."""


class Provenance(Part):
    """Where a record comes from: enough to run it again."""

    python: str
    """Version of Python."""
    platform: str
    """Operating system and processor; no host name."""
    device: str
    """What it ran on, for example "cpu" or the name of the accelerator."""
    packages: dict[str, str | None]
    """Installed version of each package that can change a number; null where it is not
    installed."""
    git_commit: str | None
    """Commit of this package's own checkout, with "-dirty" if files had changed; null for an
    installed package."""
    seed: int | None
    """Seed of the run; null where nothing was random."""
    tokenizer_key: str | None
    """Key of the tokenizer, as in the token files; null where not known."""


class Record(Part):
    """One run, whole."""

    format: Literal["neutral-residues/record"] = FORMAT
    """Says that the file is ours."""
    version: Literal[1, 2, 3] = VERSION
    """Version of this schema."""
    kind: Literal["extend", "evaluate"]
    """extend: training and then evaluation. evaluate: evaluation only."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    """When the record was made, UTC, ISO 8601."""
    method: str = Field(min_length=1)
    """Name in the table of methods, for example "neutral" or "lora"."""
    metrics: list[Metric] = []
    """All final measurements; no two alike in name, of, set and layer."""
    sets: list[EvaluationSet] = []
    """The texts behind metrics and curve; empty in records of version 1."""
    curve: list[dict[str, int | float]] = []
    """Measurements during training: each point has "step" and any named numbers."""
    samples: list[Sample] = []
    """Continuations by both models."""
    gates: list[GateText] = []
    """Gates over short texts; empty for a method without block gates."""
    breakdowns: list[Breakdown] = []
    """Why each set's bits per byte moved; empty in records before version 3."""
    tasks: list[TaskScore] = []
    """Tasks, each once; empty in records of versions 1 and 2."""
    cost: Cost = Cost()
    """Time, memory and weights."""
    provenance: Provenance
    """Code, machine and seed."""
    config: dict[str, Any] = {}
    """The fully resolved run configuration."""

    @property
    def label(self) -> str:
        """How tables call this run."""
        return str(self.config.get("label") or self.method)

    @field_validator("created")
    @classmethod
    def _in_utc(cls, created: datetime) -> datetime:
        return created.astimezone(UTC)

    @field_validator("curve")
    @classmethod
    def _every_point_has_its_step(
        cls, curve: list[dict[str, int | float]]
    ) -> list[dict[str, int | float]]:
        if any("step" not in point for point in curve):
            raise ValueError('every point of the curve needs "step"')
        return curve

    @model_validator(mode="after")
    def _no_metric_twice(self) -> Self:
        seen: set[tuple[object, ...]] = set()
        for metric in self.metrics:
            key = (metric.name, metric.of, metric.set, metric.layer)
            if key in seen:
                raise ValueError(f"metric twice: {key}")
            seen.add(key)
        return self

    @field_validator("tasks")
    @classmethod
    def _no_task_twice(cls, tasks: list[TaskScore]) -> list[TaskScore]:
        names = [task.name for task in tasks]
        if len(set(names)) < len(names):
            raise ValueError(
                "task twice:"
                f" {', '.join(sorted({name for name in names if names.count(name) > 1}))}"
            )
        return tasks


class Failure(Part):
    """A run of a comparison that failed: why, in one line."""

    format: Literal["neutral-residues/failure"] = FAILURE_FORMAT
    """Says that the file is ours."""
    label: str = Field(min_length=1)
    """How tables call this run."""
    reason: str = Field(min_length=1)
    """The error, in one line."""
    created: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    """When it failed, UTC, ISO 8601."""
