"""The section `data` of a run file: which texts, for what, and in which shares. No torch here."""

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from neutral_residues.config.base import Settings

Role = Literal["source", "target"]
"""source: what the backbone knows. target: what it is to learn."""
SELF = Path("self")
"""What `path` of a corpus is whose text the backbone writes."""
Shares = tuple[float, float]
"""At the first and at the last row of a run."""
Kind = Literal["documents", "chats", "pairs"]
PAIR_TEMPLATE = "{prompt}\n{completion}"
SPLICED_TOKENS = 16
"""The shortest row that switches between source and target text; see `data/splicing.py`."""


def exact(share: float) -> Fraction:
    """Through its decimal form, as it was written: 0.1 is a tenth, so ten rows hold one of them."""
    return Fraction(str(share))


class Corpus(Settings):
    """Documents of one kind, from local files or from a `datasets` name."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    """Name of this corpus in every table, for example "fr"."""
    role: Role
    """source: like what the backbone knows; target: the new language or domain."""
    path: Path | None = None
    """.txt (documents separated by blank lines), .jsonl, .tsv (these also as .gz or .zst),
    .parquet. Or the word self in a source corpus of `train`: the backbone writes the text, see
    `self_replay`."""
    dataset: str | None = None
    """Instead of `path`: the name of a dataset for `datasets.load_dataset`."""
    subset: str | None = None
    """Configuration of that dataset, for example "20231101.fr"."""
    split: str = "train"
    """Split of that dataset."""
    chat: bool = False
    """Rows are chats: `field` (here "messages" by default) holds a list of {role, content}. The
    tokenizer's chat template renders them, and only the assistant's messages are predicted."""
    field: str = "text"
    """The JSON field or column that holds the text; translation.fr is a field within another.
    Columns of a .tsv are named by its first line, or counted: 2 is the second."""
    prompt: str | None = None
    """Rows are pairs: the field or column that is read before the text in `field`, which is
    predicted. For example a sentence and its translation, or TRL's prompt and completion."""
    prompt_path: Path | None = None
    """Instead of `prompt`: a file whose lines are the prompts for the same lines of `path`; both
    plain text with any suffix, also .gz or .zst."""
    template: str = PAIR_TEMPLATE
    """How a pair is written: a text with {prompt} and {completion}."""
    completion_only_loss: bool = True
    """Predict only the completion of a pair and what follows it; false: the prompt too."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many documents, from the beginning."""
    share: Shares | None = None
    """In `train`: share of the rows of this role, exact to within a row: 0.3, or [0.8, 0.2], which
    changes linearly from the first to the last row of the run. Either all corpora of a role have
    one, and they sum to 1, or none has; then they are mixed by their size."""

    @field_validator("share", mode="before")
    @classmethod
    def _constant_share(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) else value

    @field_validator("share")
    @classmethod
    def _share_of_rows(cls, value: Shares | None) -> Shares | None:
        if value and not (all(0 <= share <= 1 for share in value) and any(value)):
            raise ValueError("share is from 0 to 1, or two such numbers, and not always 0")
        return value

    @field_validator("field", "prompt", mode="before")
    @classmethod
    def _number_of_column(cls, value: Any) -> Any:
        return str(value) if type(value) is int else value

    @field_validator("template")
    @classmethod
    def _both_sides_once(cls, value: str) -> str:
        before, prompt, rest = value.partition("{prompt}")
        between, completion, after = rest.partition("{completion}")
        others = before + between + after
        if not (prompt and completion) or "{prompt}" in others or "{completion}" in others:
            raise ValueError("template needs {prompt} once, and {completion} once after it")
        return value

    @model_validator(mode="before")
    @classmethod
    def _field_of_chats(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("chat") is True and "field" not in values:
            return values | {"field": "messages"}
        return values

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give either path or dataset")
        if self.subset is not None and self.dataset is None:
            raise ValueError("subset goes with dataset")
        return self

    @model_validator(mode="after")
    def _pairs_have_two_sides(self) -> Self:
        default = {name: field.default for name, field in type(self).model_fields.items()}
        if self.kind != "pairs":
            for name in ("template", "completion_only_loss"):
                if getattr(self, name) != default[name]:
                    raise ValueError(f"{name} has no effect without prompt or prompt_path")
        if self.prompt is not None and self.prompt_path is not None:
            raise ValueError("give either prompt or prompt_path")
        if self.chat and (self.prompt or self.prompt_path):
            raise ValueError("chat and prompt do not go together; remove one of them")
        if self.prompt == self.field:
            raise ValueError("prompt and field are the same; set field to that of the completion")
        if self.prompt_path is not None and self.path is None:
            raise ValueError("prompt_path goes with path")
        if self.prompt_path is not None and self.field != default["field"]:
            raise ValueError("field has no effect with prompt_path, whose lines are prompts")
        return self

    @model_validator(mode="after")
    def _self_needs_nothing_else(self) -> Self:
        if self.is_self:
            idle = self.model_fields_set - {"name", "role", "path", "share"}
            changed = [n for n in idle if getattr(self, n) != type(self).model_fields[n].default]
            if self.role != "source":
                raise ValueError("path: self is for role: source, as the backbone writes that text")
            if changed:
                raise ValueError(f"{min(changed)} has no effect with path: self; see self_replay")
        return self

    @property
    def kind(self) -> Kind:
        """What it holds: plain text, or text of which a part is predicted."""
        if self.chat:
            return "chats"
        return "documents" if self.prompt is None and self.prompt_path is None else "pairs"

    @property
    def is_self(self) -> bool:
        """Whether the backbone writes this text."""
        return self.path == SELF

    @property
    def origin(self) -> str:
        """The path or dataset name, for messages."""
        dataset = f"{self.dataset}:{self.subset or 'default'}/{self.split}"
        return dataset if self.path is None else str(self.path)


class SelfReplaySettings(Settings):
    """How the backbone writes source text, for a corpus with `path: self`. The text is cached; a
    longer one begins with the shorter one."""

    tokens: int | None = Field(default=None, ge=1)
    """About how many to write; null: the source tokens of one process, up to 1,000,000."""
    document_tokens: int = Field(default=256, ge=16)
    """A document ends where the backbone ends it, or after this many tokens."""
    prompts: Path | None = None
    """Text file whose lines begin the documents, in turn: words, titles, questions. null: documents
    begin without a prompt, as in pretraining."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. 1 is the backbone's own distribution; at low ones text repeats."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: only among the most probable tokens that sum to this probability."""
    batch_rows: int = Field(default=32, ge=1)
    """Documents written at a time; the text depends on it."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampling; the run's own seed does not change the text."""


class DataSettings(Settings):
    """What the model reads, and in which shares."""

    train: tuple[Corpus, ...] = Field(min_length=1)
    """Training text; at least one target, and a source corpus unless source_share is 0."""
    evaluate: tuple[Corpus, ...] = ()
    """Held-out source and target text; empty: some documents of each training corpus."""
    validate_on: tuple[Corpus, ...] = ()
    """Other held-out text, measured during training, to choose settings by; empty: `evaluate`."""
    held_out_share: float = Field(default=0.02, gt=0, lt=1)
    """Share of documents held out of each training corpus when `evaluate` is empty."""
    source_share: float = Field(default=0.1, ge=0, le=1)
    """Share of training rows that are source text (the paper's p); exact to within a row."""
    spliced_share: float = Field(default=0.0, ge=0, le=1)
    """Share of source rows that are spliced with a target row: the two texts alternate in both
    rows, so that gates learn to close again after target text. All methods read the same rows."""
    self_replay: SelfReplaySettings = SelfReplaySettings()
    """How the backbone writes the text of a corpus with `path: self`."""
    block_tokens: int = Field(default=512, ge=2)
    """Tokens in a training row."""
    end_of_text: str | None = Field(default=None, min_length=1)
    """The token that ends each document, as in pretraining; null: the tokenizer's `eos_token`, or
    its end-of-document token where `eos_token` ends the turns of a chat ("<|im_end|>")."""
    chat_template: Path | None = None
    """File with a Jinja chat template for chats, saved with the extension; null takes that of the
    model's tokenizer."""
    workers: int = Field(default=2, ge=0)
    """Processes that load rows for a GPU (none on a CPU); the result does not depend on it."""
    cache: Path | None = None
    """Folder for tokenised text, learnt tokens and text that the backbone writes; null:
    neutral-residues in the user's cache folder."""

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """All of them, whatever they are for."""
        return (*self.train, *self.evaluate, *self.validate_on)

    @property
    def shares(self) -> dict[str, Shares]:
        """Of the training corpora that have one, by name."""
        return {corpus.name: corpus.share for corpus in self.train if corpus.share}

    @property
    def self_corpus(self) -> Corpus | None:
        """The corpus that the backbone writes."""
        return next((corpus for corpus in self.train if corpus.is_self), None)

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for corpora in (self.train, self.evaluate, self.validate_on):
            names = [corpus.name for corpus in corpora]
            if len(set(names)) < len(names):
                raise ValueError(f"corpus names must differ: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _template_has_chats(self) -> Self:
        if self.chat_template and not any(corpus.chat for corpus in self.corpora):
            raise ValueError("chat_template has no effect without a corpus with chat: true")
        return self

    @model_validator(mode="after")
    def _roles_fit_the_share(self) -> Self:
        roles = {corpus.role for corpus in self.train}
        if "target" not in roles and self.source_share < 1:
            raise ValueError("train has no corpus with role: target, so there is nothing to learn")
        if "source" not in roles and self.source_share > 0:
            raise ValueError(
                "train has no corpus with role: source; add it (path: self has the backbone write"
                " it), or set source_share: 0"
            )
        return self

    @model_validator(mode="after")
    def _shares_are_a_whole(self) -> Self:
        if any(corpus.share for corpus in (*self.evaluate, *self.validate_on)):
            raise ValueError("share has no effect outside train; remove it")
        for role in get_args(Role):
            corpora = [corpus for corpus in self.train if corpus.role == role]
            shares = [corpus.share for corpus in corpora if corpus.share]
            without = [corpus.name for corpus in corpora if not corpus.share]
            if shares and without:
                raise ValueError(
                    f"corpus {without[0]} of train has no share, and another {role} corpus has;"
                    " give all of them one, or none"
                )
            for whole in (sum(map(exact, at)) for at in zip(*shares, strict=True)):
                if whole != 1:
                    got = f"got {float(whole):g}"
                    raise ValueError(f"shares of the {role} corpora of train must sum to 1 ({got})")
        return self

    @model_validator(mode="after")
    def _self_is_one_training_corpus(self) -> Self:
        own = sum(corpus.is_self for corpus in self.train)
        if any(corpus.is_self for corpus in (*self.evaluate, *self.validate_on)):
            raise ValueError(
                "path: self goes in train; without evaluate, some of it is held out and measured"
            )
        if own > 1:
            raise ValueError("train has more than one corpus with path: self")
        if not own and self.self_replay != SelfReplaySettings():
            raise ValueError("self_replay has no effect without a corpus with path: self in train")
        if own and self.source_share == 0:
            raise ValueError("path: self has no effect with source_share: 0; remove one of them")
        return self

    @model_validator(mode="after")
    def _splicing_has_rows(self) -> Self:
        if self.spliced_share and not 0 < self.source_share <= 0.5:
            raise ValueError(
                "spliced_share needs a target row for each source row: set source_share above 0"
                f" and up to 0.5 (got {self.source_share:g}), or spliced_share: 0"
            )
        if self.spliced_share and self.block_tokens < SPLICED_TOKENS:
            raise ValueError(
                f"spliced_share needs block_tokens of {SPLICED_TOKENS} or more, two segments"
                f" (got {self.block_tokens})"
            )
        return self
