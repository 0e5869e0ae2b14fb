"""Chats -> tokens, and which of these are predicted: what the assistant says.

The tokenizer's chat template renders a chat, and the text is tokenised as a whole, so the tokens
are those that the model meets in use. What the assistant says is what the template marks as such
({% generation %}), or, in one without marks, what follows the generation prompt: the answer and the
token that ends the turn. Everything else, the questions and the template's own words, is read and
not predicted, nor is the end-of-text token behind a chat.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from neutral_residues.data.documents import Chat, said
from neutral_residues.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


class TokenisedChat(NamedTuple):
    """One chat, end-of-text included."""

    token_ids: list[int]
    predicted: list[bool]  # for each token


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template that renders chats; a UserError if there is none."""
    if not tokenizer.chat_template:
        what = f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template"
        raise UserError(what, do="take the instruct model, or set data.chat_template")
    return tokenizer.get_chat_template()


def answer_bytes(chat: Chat) -> int:
    """UTF-8 bytes of what the assistant says."""
    return sum(len(m["content"].encode()) for m in chat if m["role"] == "assistant")


def chat_encoder(
    tokenizer: "PreTrainedTokenizerBase", end_of_text: int
) -> Callable[[Sequence[Chat]], list[TokenisedChat]]:
    """Chats -> the tokens of each; a UserError for one that the template refuses, or renders so
    that its answers cannot be told, and for a tokenizer that cannot tell where its tokens lie in a
    text."""
    if not tokenizer.is_fast:
        what, got = "chats need a fast tokenizer", type(tokenizer).__name__
        raise UserError(what, got=got, allowed="one of the tokenizers library")
    encode = _by_marks if MARKS.search(chat_template(tokenizer)) else _by_prompts

    def with_end(chat: TokenisedChat) -> TokenisedChat:
        # Some templates end with it.
        if chat.token_ids[-1] == end_of_text:
            return chat
        return TokenisedChat([*chat.token_ids, end_of_text], [*chat.predicted, False])

    return lambda chats: [with_end(chat) for chat in encode(tokenizer, chats)]


def _by_marks(tokenizer: Any, chats: Sequence[Chat]) -> Iterator[TokenisedChat]:
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    for chat in chats:
        found = apply_template(tokenizer, chat, tokenizer_kwargs={"verbose": False}, **options)
        yield TokenisedChat(found["input_ids"], [bool(it) for it in found["assistant_masks"]])


def _by_prompts(tokenizer: Any, chats: Sequence[Chat]) -> Iterator[TokenisedChat]:
    texts, spans = [], []
    for chat in chats:
        texts.append(_render(tokenizer, chat))
        spans.append(list(_answers(tokenizer, chat, texts[-1])))
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    found = tokenizer(texts, **options)
    each = zip(found["input_ids"], found["offset_mapping"], spans, strict=True)
    for token_ids, offsets, answers in each:
        # A token's place may be given without the white space in it, and then be empty.
        predicted = [
            any(end > first and start < last for first, last in answers) for start, end in offsets
        ]
        yield TokenisedChat(token_ids, predicted)


def _answers(tokenizer: Any, chat: Chat, text: str) -> Iterator[Span]:
    """Where in `text`, the rendered chat, the assistant speaks."""
    for number, message in enumerate(chat):
        if message["role"] == "assistant":
            before = _render(tokenizer, chat[:number], prompt=True)
            after = _render(tokenizer, chat[: number + 1])
            if not (text.startswith(before) and text.startswith(after) and after > before):
                what = "the chat template changes what comes before an answer"
                do = "mark the answers in it with {% generation %}, or give chats of one answer"
                raise UserError(what, got=repr(said(chat)[:40]), do=do)
            yield len(before), len(after)


def _render(tokenizer: Any, chat: Chat, *, prompt: bool = False) -> str:
    return str(apply_template(tokenizer, chat, tokenize=False, add_generation_prompt=prompt))


def apply_template(tokenizer: Any, chat: Chat, **options: Any) -> Any:
    """Transformers' `apply_chat_template`; a UserError for a chat that the template refuses."""
    try:
        return tokenizer.apply_chat_template(chat, **options)
    except Exception as error:  # of a template, which is a program in a sandbox
        what = f"the chat template cannot render {said(chat)[:40]!r}"
        raise UserError(what, got=first_line(error), do="change or remove this chat") from error
