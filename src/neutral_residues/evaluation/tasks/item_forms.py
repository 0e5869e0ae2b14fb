"""The forms of items in a task file, and how models are asked in each.

    multiple choice    query, choices, gold                   which choice continues the query?
    whole texts        query (""), choices, gold              which choice is the likeliest text?
    letters            letter_query, choices, gold            the query lists them as A, B, ...
    partial            context_options, continuation, gold    after which of them is it likeliest?
    cloze              context, continuation                  how likely is it?
    minimal pair       good, bad, uid                         is the right sentence the likelier?

`gold` is the index of the right one, from 0. The forms are asked as lm-eval asks HellaSwag, PAWS-X,
MMLU, WinoGrande, LAMBADA and BLiMP, in this order, so that scores are those of lm-eval on the same
items. Continuations follow their context after a space, which does not count in the length that
acc_norm divides by. Whole texts are scored from the token that starts a text.

Where we choose: the wrong sentence of a minimal pair comes first, so that a model that gives both
the same probability gets 0, not 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.local_task import Item


@dataclass(frozen=True)
class Form:
    """A form of items: the fields that they need, and how they are asked."""

    title: str
    texts: tuple[str, ...]  # fields that hold a text
    options: str | None  # field with a list of texts, of which `gold` is the index of the right one
    asked: Mapping[str, Any]  # part of lm-eval's task configuration
    metrics: tuple[str, ...] = ("acc",)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of all fields that an item needs."""
        return self.texts if self.options is None else (*self.texts, self.options, "gold")

    def check(self, item: Mapping[str, Any], where: str) -> None:
        """Raise a UserError, which begins with `where`, unless the item has this form."""
        for field in self.fields:
            if field not in item:
                fields = ", ".join(self.fields)
                raise UserError(f"{where} has no {field}", allowed=f"{self.title}: {fields}")
        for field in self.texts:
            _require(_is_text(item[field]), where, field, item, "a text")
        if self.options is not None:
            options, gold = item[self.options], item["gold"]
            are_texts = isinstance(options, list) and all(map(_is_text, options))
            several = are_texts and len(options) > 1
            _require(several, where, self.options, item, "a list of two texts or more")
            numbers = f"0 to {len(options) - 1} ({self.options} count from 0)"
            _require(type(gold) is int and 0 <= gold < len(options), where, "gold", item, numbers)


def _require(holds: bool, where: str, field: str, item: Mapping[str, Any], allowed: str) -> None:
    if not holds:
        raise UserError(f"{where} has a wrong {field}", got=repr(item[field])[:60], allowed=allowed)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _letters(item: Item) -> list[str]:
    return [chr(ord("A") + number) for number in range(len(item["choices"]))]


_CHOICE = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
MULTIPLE_CHOICE = Form(
    "multiple choice",
    texts=("query",),
    options="choices",
    asked=_CHOICE | {"target_delimiter": " "},
    metrics=("acc", "acc_norm"),
)
WHOLE_TEXTS = Form(
    "whole texts, with an empty query",
    texts=(),
    options="choices",
    asked=_CHOICE | {"target_delimiter": ""},
)
LETTERS = Form(
    "letters",
    texts=("letter_query",),
    options="choices",
    asked={
        "doc_to_text": "letter_query",
        "doc_to_choice": _letters,
        "doc_to_target": "gold",
        "target_delimiter": " ",
    },
)
PARTIAL = Form(
    "partial",
    texts=("continuation",),
    options="context_options",
    asked={
        "doc_to_text": "gold",  # if this is a number, choices are contexts for lm-eval
        "doc_to_choice": "context_options",
        "doc_to_target": "continuation",
        "target_delimiter": " ",
    },
)
CLOZE = Form(
    "cloze",
    texts=("context", "continuation"),
    options=None,
    asked={
        "output_type": "loglikelihood",
        "doc_to_text": "context",
        "doc_to_target": lambda item: f" {item['continuation']}",
        "target_delimiter": " ",  # in few-shot examples, which have two spaces in LAMBADA too
    },
    metrics=("acc", "perplexity"),
)
MINIMAL_PAIR = Form(
    "minimal pair",
    texts=("good", "bad", "uid"),
    options=None,
    asked={
        "doc_to_text": "",
        "doc_to_choice": lambda item: [item["bad"], item["good"]],
        "doc_to_target": 1,
        "target_delimiter": "",
    },
)

FORMS = (MULTIPLE_CHOICE, PARTIAL, CLOZE, MINIMAL_PAIR)
"""The forms of items in a file. Whole texts and letters are other ways to ask multiple-choice
items."""


def form_of(item: Mapping[str, Any]) -> Form | None:
    """The form that the fields of an item suggest, even if some are missing; None if they suggest
    none."""
    if "context_options" in item:
        return PARTIAL
    if item.keys() & {"query", "choices", "letter_query"}:
        return WHOLE_TEXTS if item.get("query") == "" else MULTIPLE_CHOICE
    if item.keys() & {"good", "bad"}:
        return MINIMAL_PAIR
    return CLOZE if item.keys() & {"context", "continuation"} else None
