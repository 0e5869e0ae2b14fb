"""The section `data` of a run file: corpora, what they are used for, and their shares. No torch."""

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from neutral_residues.config.base import Settings

Role = Literal["source", "target"]
"""source: text that the backbone already models. target: text that it shall learn."""
SELF = Path("self")
"""The `path` of a corpus whose text the backbone generates."""
Shares = tuple[float, float]
"""Share of a corpus at the first and at the last row of a run; it changes linearly in between."""
Kind = Literal["documents", "chats", "pairs"]
PAIR_TEMPLATE = "{prompt}\n{completion}"
SPLICED_TOKENS = 16
"""Tokens of the shortest row that can alternate between source and target text; see
`data/splicing.py`."""


def exact(share: float) -> Fraction:
    """`share` as the fraction that its decimal digits stand for: 0.1 is exactly a tenth, so that
    one of ten rows has it."""
    return Fraction(str(share))


class Corpus(Settings):
    """A text corpus of documents, chats or pairs, from a local file or the `datasets` library."""

    name: str = Field(min_length=1, pattern=r"^[\w.-]+$")
    """Name of this corpus in all tables, for example "fr"."""
    role: Role
    """source: text that the backbone already models; target: the new language or domain."""
    path: Path | None = None
    """A local file: .txt (documents separated by blank lines), .jsonl or .tsv (all three also
    compressed, as .gz or .zst), or .parquet. Or the word self, in a source corpus of `train`: the
    backbone generates the text, see `self_replay`."""
    dataset: str | None = None
    """Instead of `path`: the name of a dataset for `datasets.load_dataset`."""
    subset: str | None = None
    """Configuration of that dataset, for example "20231101.fr"."""
    split: str = "train"
    """Split of that dataset."""
    chat: bool = False
    """Documents are chats: `field` (by default "messages" then) contains a list of {role, content}.
    They are rendered with the tokenizer's chat template, and the loss is computed on the
    assistant's messages only."""
    field: str = "text"
    """Name of the JSON field or column with the text; translation.fr is a field inside another.
    Columns of a .tsv have the names in its first line, or numbers: 2 is the second column."""
    prompt: str | None = None
    """Documents are pairs of a prompt and a completion: the field or column with the prompt;
    `field` is that of the completion. For example a sentence and its translation, or TRL's prompt
    and completion."""
    prompt_path: Path | None = None
    """Instead of `prompt`: a file with one prompt per line, for the completion in the same line of
    `path`. Both files are plain text with any suffix, also compressed as .gz or .zst."""
    template: str = PAIR_TEMPLATE
    """Text of a pair, with the placeholders {prompt} and {completion}."""
    completion_only_loss: bool = True
    """Compute the loss only on the completion of a pair and what follows it (the end of the
    template, the end-of-text token); false: on the prompt too."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most this many documents, from the beginning; null: all."""
    share: Shares | None = None
    """Only in `train`: share of this corpus in the rows of its role, exact to within a row. A
    number, or two such as [0.8, 0.2]: the share then changes linearly from the first to the last
    row of the run. Set it for all corpora of a role, with a sum of 1, or for none: they are then
    mixed in proportion to their size."""

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
        """documents: plain text. chats and pairs: the loss may be on a part of the text only."""
        if self.chat:
            return "chats"
        return "documents" if self.prompt is None and self.prompt_path is None else "pairs"

    @property
    def is_self(self) -> bool:
        """Whether the backbone generates this text."""
        return self.path == SELF

    @property
    def origin(self) -> str:
        """The path or dataset name, for error messages."""
        dataset = f"{self.dataset}:{self.subset or 'default'}/{self.split}"
        return dataset if self.path is None else str(self.path)


class SelfReplaySettings(Settings):
    """How the backbone generates source text, for a corpus with `path: self`. The text is cached; a
    longer text begins with the shorter one."""

    tokens: int | None = Field(default=None, ge=1)
    """Approximate number of tokens to generate; null: as many source tokens as one process of the
    run reads, up to 1,000,000."""
    document_tokens: int = Field(default=256, ge=16)
    """Maximum number of tokens of a document; the backbone may end it earlier."""
    prompts: Path | None = None
    """Text file with one prompt per line (words, titles, questions), with which the documents begin
    in turn. null: documents begin without a prompt, as in pretraining."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature. 1 is the backbone's own distribution; at low temperatures text repeats
    itself."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling, as in Transformers: sample from the most probable tokens whose
    probabilities add up to top_p."""
    batch_rows: int = Field(default=32, ge=1)
    """Documents that are generated in one batch; another number gives another text."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampling; the seed of the run does not change the text."""


class DataSettings(Settings):
    """Text for training and evaluation, and how it is mixed."""

    train: tuple[Corpus, ...] = Field(min_length=1)
    """Training text: at least one target corpus, and a source corpus unless source_share is 0."""
    evaluate: tuple[Corpus, ...] = ()
    """Held-out source and target text for the evaluation at the end; empty: held_out_share of the
    documents of each training corpus."""
    validate_on: tuple[Corpus, ...] = ()
    """Other held-out text, which is measured during training and can be used to choose settings;
    empty: the text of `evaluate` is measured during training too."""
    held_out_share: float = Field(default=0.02, gt=0, lt=1)
    """Share of documents held out of each training corpus when `evaluate` is empty."""
    source_share: float = Field(default=0.1, ge=0, le=1)
    """Share of training rows that are source text (the paper's p); exact to within a row."""
    spliced_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the source rows that are spliced with a target row: source and target text alternate
    in both rows, so that gates learn to close again after target text. All methods read the same
    rows."""
    self_replay: SelfReplaySettings = SelfReplaySettings()
    """How the backbone generates the text of a corpus with `path: self`."""
    block_tokens: int = Field(default=512, ge=2)
    """Number of tokens of a training row (sequence length)."""
    end_of_text: str | None = Field(default=None, min_length=1)
    """The token that ends each document, as in pretraining; null: the tokenizer's `eos_token`, or
    its end-of-document token if `eos_token` ends the turns of a chat ("<|im_end|>")."""
    chat_template: Path | None = None
    """File with a Jinja chat template for chats, which is saved with the extension; null: the chat
    template of the model's tokenizer."""
    workers: int = Field(default=2, ge=0)
    """Number of data loader processes per GPU (none are used on a CPU); does not change the
    result."""
    cache: Path | None = None
    """Folder for tokenised text, new vocabularies and text that the backbone generates; null:
    neutral-residues in the user's cache folder."""

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora of `train`, `evaluate` and `validate_on`."""
        return (*self.train, *self.evaluate, *self.validate_on)

    @property
    def shares(self) -> dict[str, Shares]:
        """Name -> share, of the training corpora that have one."""
        return {corpus.name: corpus.share for corpus in self.train if corpus.share}

    @property
    def self_corpus(self) -> Corpus | None:
        """The training corpus with `path: self`, if there is one."""
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
