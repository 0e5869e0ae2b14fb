"""Chats -> tokens, of which those of the assistant's messages are predicted.

The tokenizer's chat template renders a chat. The assistant's messages are what the template marks
with {% generation %}, or, in a template without it, what follows the generation prompt: the answer
and the token that ends the turn. Everything else (questions, the template's own words, the
end-of-text token after a chat) is read but not predicted.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from neutral_residues.data.documents import Chat, said
from neutral_residues.data.spans import (
    Encoder,
    PredictedTokens,
    Span,
    check_is_fast,
    encode_spans,
    with_end,
)
from neutral_residues.errors import UserError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def chat_template(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The template that renders chats; a UserError if there is none."""
    if not tokenizer.chat_template:
        what = f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template"
        raise UserError(what, do="take the instruct model, or set data.chat_template")
    return tokenizer.get_chat_template()


def answer_bytes(chat: Chat) -> int:
    """UTF-8 bytes of the assistant's messages."""
    return sum(len(m["content"].encode()) for m in chat if m["role"] == "assistant")


def chat_encoder(tokenizer: "PreTrainedTokenizerBase", end_of_text: int) -> Encoder[Chat]:
    """A function from chats to the tokens of each. It raises a UserError for a chat that the
    template refuses or whose answers cannot be found in the rendered text, and for a tokenizer
    without offsets."""
    check_is_fast(tokenizer, "chats")
    encode = _by_marks if MARKS.search(chat_template(tokenizer)) else _by_prompts
    # Some templates end with it.
    return lambda chats: [
        with_end(chat, end_of_text, predicted=False) for chat in encode(tokenizer, chats)
    ]


def _by_marks(tokenizer: Any, chats: Sequence[Chat]) -> Iterator[PredictedTokens]:
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    for chat in chats:
        found = apply_template(tokenizer, chat, tokenizer_kwargs={"verbose": False}, **options)
        yield PredictedTokens(found["input_ids"], [bool(it) for it in found["assistant_masks"]])


def _by_prompts(tokenizer: Any, chats: Sequence[Chat]) -> list[PredictedTokens]:
    texts = [_render(tokenizer, chat) for chat in chats]
    answers = [
        list(_answers(tokenizer, chat, text)) for chat, text in zip(chats, texts, strict=True)
    ]
    return encode_spans(tokenizer, texts, answers)


def _answers(tokenizer: Any, chat: Chat, text: str) -> Iterator[Span]:
    """The spans of the assistant's messages in `text`, the rendered chat."""
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
