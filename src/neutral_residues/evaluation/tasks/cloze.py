"""A task for any language: which of four sentences continues this paragraph? Made from held-out
text.

An item is a few sentences of a document, the sentence that follows, and three that follow elsewhere
in the set: in other documents, and nearest in length, so that length gives nothing away. The same
text, tokenizer and length of context make the same items, in the same order.

Where we choose: a paragraph is at least `CONTEXT_CHARACTERS` long, and no longer than the model is
measured on (its beginning is dropped by whole sentences); items of a document do not overlap; at
most `MAX_ITEMS` items, drawn with a fixed seed. An answer's score is its log-likelihood after the
paragraph less that without it (lm-eval's acc_mutual_info): else a sentence of frequent words would
win wherever it stands. Sentences end at . ! ? … and their kin in Devanagari, Arabic and East Asian
scripts, and at the end of a line; "M. Dupont" is cut too, which does no harm but to that item. Text
is decoded from tokens. No torch.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neutral_residues.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neutral_residues.evaluation.evaluate import ScorableText

NUM_CHOICES = 4
MAX_ITEMS = 500
MAX_DOCUMENTS = 2000
CONTEXT_CHARACTERS = 150
ANSWER_CHARACTERS = (30, 150)
NEIGHBOURS = 30
"""Wrong answers are drawn from so many sentences that are nearest in length."""
SEED = 0
SENTENCE = re.compile(r"\S.*?(?:[.!?…।۔؟]+[\"'»”’)\]]*(?=\s|$)|[。！？]+[」』”’]*|$)", re.MULTILINE)


@dataclass(frozen=True)
class _Gap:
    """A place where a sentence follows a paragraph."""

    document: int
    context: str
    answer: str
    """With the white space in front of it."""


def cloze_items(
    stream: "ScorableText", tokenizer: "PreTrainedTokenizerBase", *, context_tokens: int
) -> list[dict[str, Any]]:
    """The items of a set: each with "context", "choices" and "answer", the number of the right
    choice.

    Args:
        context_tokens: paragraph and answer together are no longer.

    Raises:
        UserError: if the set is too small or has no sentences.
    """
    generator = random.Random(SEED)
    gaps = [
        gap for number, text in _texts(stream, tokenizer, generator) for gap in _gaps(number, text)
    ]
    gaps.sort(key=lambda gap: len(gap.answer))

    def num_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    order = list(range(len(gaps)))
    generator.shuffle(order)
    items: list[dict[str, Any]] = []
    for place in order:
        if len(items) == MAX_ITEMS:
            break
        item = _item(gaps, place, generator)
        item = item and _shortened(item, num_tokens, context_tokens)
        items += [item] if item else []
    if len(items) < 2:
        what = (
            f"no items in cloze-{stream.name}: the set holds too few paragraphs of several"
            " sentences"
        )
        raise UserError(
            what, got=f"{len(items)} items", do="give it more documents, or name other tasks"
        )
    return items


def cloze_task(name: str) -> dict[str, Any]:
    """The configuration of an lm-eval task over such items, without its data."""
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": lambda doc: doc["context"],
        "target_delimiter": "",
        "doc_to_choice": lambda doc: doc["choices"],
        "doc_to_target": lambda doc: doc["answer"],
        "num_fewshot": 0,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True}
            for metric in ("acc_mutual_info", "acc")
        ],
        "metadata": {"version": 1},
    }


def _texts(
    stream: "ScorableText", tokenizer: "PreTrainedTokenizerBase", generator: random.Random
) -> Iterator[tuple[int, str]]:
    """Number and text of documents, a random part of many."""
    ends = stream.document_ends.tolist()
    starts = [0, *ends[:-1]]
    for number in sorted(generator.sample(range(len(ends)), min(MAX_DOCUMENTS, len(ends)))):
        yield (
            number,
            str(tokenizer.decode(stream.tokens[starts[number] : ends[number] - 1].tolist())),
        )


def _gaps(document: int, text: str) -> Iterator[_Gap]:
    """Where a sentence follows a paragraph; neither overlaps another gap's."""
    spans = [match.span() for match in SENTENCE.finditer(text)]
    shortest, longest = ANSWER_CHARACTERS
    start = 0  # the sentence that the paragraph begins with
    for number, (first, last) in enumerate(spans):
        if number <= start:
            continue
        begin, end = spans[start][0], spans[number - 1][1]
        if end - begin >= CONTEXT_CHARACTERS and shortest <= last - first <= longest:
            yield _Gap(document, text[begin:end], text[end:last])
            start = number + 1


def _item(gaps: Sequence[_Gap], place: int, generator: random.Random) -> dict[str, Any] | None:
    """The gap at `place` with wrong answers from around it; None where there are not enough."""
    right = gaps[place]
    by_text: dict[str, _Gap] = {}
    low, high = place, place
    while len(by_text) < NEIGHBOURS and (low > 0 or high < len(gaps) - 1):
        low, high = max(0, low - 1), min(len(gaps) - 1, high + 1)
        for gap in (gaps[low], gaps[high]):
            if gap.document != right.document and gap.answer.strip() != right.answer.strip():
                by_text.setdefault(gap.answer.strip(), gap)
    if len(by_text) < NUM_CHOICES - 1:
        return None
    space = right.answer[: len(right.answer) - len(right.answer.lstrip())]
    wrong = [space + text for text in generator.sample(sorted(by_text), NUM_CHOICES - 1)]
    answer = generator.randrange(NUM_CHOICES)
    return {
        "context": right.context,
        "choices": [*wrong[:answer], right.answer, *wrong[answer:]],
        "answer": answer,
    }


def _shortened(
    item: dict[str, Any], num_tokens: Callable[[str], int], context_tokens: int
) -> dict[str, Any] | None:
    """The item with so much of its paragraph's end as fits beside the longest choice; None where
    nothing does."""
    context, longest = item["context"], max(num_tokens(choice) for choice in item["choices"])
    starts = [match.start() for match in SENTENCE.finditer(context)]
    for start in starts:
        if num_tokens(context[start:]) + longest <= context_tokens:
            return item | {"context": context[start:]}
    return None
