"""A task for any language, made from held-out text: which of four sentences continues this
paragraph?

An item consists of a few sentences of a document, the sentence after them, and three sentences from
other documents of the set. The wrong sentences have about the same length, so that length gives no
hint. Items and their order depend only on the text, the tokenizer and the context length.

Where we choose: a paragraph has at least `CONTEXT_CHARACTERS` characters, and is shortened from its
beginning, by whole sentences, to fit the context; items of a document do not overlap; there are at
most `MAX_ITEMS` items, drawn with a fixed seed. The score of an answer is its log-likelihood after
the paragraph minus that without it (lm-eval's acc_mutual_info): otherwise a sentence of frequent
words would always win. Sentences end at . ! ? … and their equivalents in Devanagari, Arabic and
East Asian scripts, and at the end of a line. "M. Dupont" is split too, which spoils only its own
item. Text is decoded from tokens.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.tasks.local_task import Item, LocalTask, Materials, task_config

NUM_CHOICES = 4
MAX_ITEMS = 500
MAX_DOCUMENTS = 2000
CONTEXT_CHARACTERS = 150
ANSWER_CHARACTERS = (30, 150)
NEIGHBOURS = 30
"""Wrong answers are drawn from this number of sentences, those nearest in length."""
SEED = 0
SENTENCE = re.compile(r"\S.*?(?:[.!?…।۔؟]+[\"'»”’)\]]*(?=\s|$)|[。！？]+[」』”’]*|$)", re.MULTILINE)


def cloze_task(name: str, set_name: str, materials: Materials) -> LocalTask:
    """The cloze task made from evaluation set `set_name`."""
    config = task_config(
        name,
        metrics=("acc_mutual_info", "acc"),
        doc_to_text="context",
        doc_to_choice="choices",
        doc_to_target="answer",
        target_delimiter="",  # choices begin with the white space of the text
    )
    stream, longest = materials.sets[set_name], materials.context_tokens
    return LocalTask(config, cloze_items(stream, materials.tokenizer, context_tokens=longest))


def cloze_items(
    stream: TokenStream, tokenizer: PreTrainedTokenizerBase, *, context_tokens: int
) -> list[Item]:
    """Make items from a set: dicts with "context", "choices" and "answer", the index of the right
    choice. Paragraph and longest choice together have at most `context_tokens` tokens. Raises a
    UserError if there are fewer than two items."""
    generator = random.Random(SEED)
    size = min(MAX_DOCUMENTS, stream.num_documents)
    documents = generator.sample(range(stream.num_documents), size)
    gaps = [
        gap
        for document in sorted(documents)
        for gap in _gaps(document, stream.document_text(document, tokenizer))
    ]
    gaps.sort(key=lambda gap: len(gap.answer))

    def num_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    order = list(range(len(gaps)))
    generator.shuffle(order)
    found = (_item(gaps, index, generator) for index in order)
    fitting = (_shortened(item, num_tokens, context_tokens) for item in found if item)
    items = list(islice(filter(None, fitting), MAX_ITEMS))
    if len(items) < 2:
        what = f"no items in cloze-{stream.name}: too few paragraphs of several sentences"
        do = "give it more documents, or name other tasks"
        raise UserError(what, got=f"{len(items)} items", do=do)
    return items


class _Gap(NamedTuple):
    """A paragraph and the sentence after it; `answer` begins with the white space between them."""

    document: int
    context: str
    answer: str


def _gaps(document: int, text: str) -> Iterator[_Gap]:
    """All paragraphs of a document with their next sentence, without overlap."""
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


def _item(gaps: Sequence[_Gap], index: int, generator: random.Random) -> Item | None:
    """An item from the gap at `index`, with wrong answers from its neighbours in `gaps`, which are
    sorted by the length of the answer; None if there are too few."""
    right = gaps[index]
    by_text: dict[str, _Gap] = {}
    low, high = index, index
    while len(by_text) < NEIGHBOURS and (low > 0 or high < len(gaps) - 1):
        low, high = max(0, low - 1), min(len(gaps) - 1, high + 1)
        for gap in (gaps[low], gaps[high]):
            if gap.document != right.document and gap.answer.strip() != right.answer.strip():
                by_text.setdefault(gap.answer.strip(), gap)
    if len(by_text) < NUM_CHOICES - 1:
        return None
    space = right.answer[: len(right.answer) - len(right.answer.lstrip())]
    choices = [space + text for text in generator.sample(sorted(by_text), NUM_CHOICES - 1)]
    answer = generator.randrange(NUM_CHOICES)
    choices.insert(answer, right.answer)
    return {"context": right.context, "choices": choices, "answer": answer}


def _shortened(item: Item, num_tokens: Callable[[str], int], context_tokens: int) -> Item | None:
    """The item with as many of the last sentences of its paragraph as fit the context together with
    the longest choice; None if not even one fits."""
    context, longest = item["context"], max(num_tokens(choice) for choice in item["choices"])
    for sentence in SENTENCE.finditer(context):
        rest = context[sentence.start() :]
        if num_tokens(rest) + longest <= context_tokens:
            return item | {"context": rest}
    return None
