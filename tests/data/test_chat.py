"""Chats as tokens: those of Transformers' own rendering, with exactly the answers predicted."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from neutral_residues.config.data import Corpus
from neutral_residues.data.chat import chat_encoder
from neutral_residues.data.documents import iter_chats, iter_documents
from neutral_residues.data.mixture import Mixture
from neutral_residues.data.tokenise import tokenise
from neutral_residues.errors import UserError
from tiny_run import CHAT_TEMPLATE, byte_tokenizer

ONE = [
    {"role": "user", "content": "Où ?"},
    {"role": "assistant", "content": " Là-bas,\n\ntrès loin."},
]
TWO = [
    {"role": "system", "content": "Sois bref."},
    *ONE,
    {"role": "user", "content": "Là-bas ?"},
    {"role": "assistant", "content": "Oui."},
]


def tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    found = byte_tokenizer(
        "<|im_end|>", extra_special_tokens=special, model_max_length=8, bos_token="<s>"
    )
    found.chat_template = template
    return found


def predicted_texts(tokenizer: Any, chat: list[dict[str, str]], end: str) -> list[str]:
    """What is predicted, run by run."""
    number = tokenizer.convert_tokens_to_ids(end)
    ((ids, predicted),) = chat_encoder(tokenizer, number)([chat])
    assert ids[-1] == number
    changes = np.flatnonzero(np.diff([0, *map(int, predicted), 0]))
    runs = zip(changes[::2], changes[1::2], strict=True)
    return [tokenizer.decode(ids[start:stop]) for start, stop in runs]


def test_tokens_are_transformers_own_and_answers_are_predicted() -> None:
    chosen = tokenizer()
    end = chosen.convert_tokens_to_ids("<|endoftext|>")
    for (ids, _), chat in zip(chat_encoder(chosen, end)([ONE, TWO]), [ONE, TWO], strict=True):
        options = {"tokenizer_kwargs": {"verbose": False}, "return_dict": False}
        assert ids == [*chosen.apply_chat_template(chat, **options), end]
    assert predicted_texts(chosen, TWO, "<|endoftext|>") == [
        " Là-bas,\n\ntrès loin.<|im_end|>\n",
        "Oui.<|im_end|>\n",
    ]


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "phi3", "cohere"])
def test_without_marks_as_with_them(name: str) -> None:
    """TRL has real templates twice, as they came and with the answers marked."""
    folder = files("trl") / "chat_templates"
    plain, marked = (
        predicted_texts(tokenizer((folder / file).read_text()), ONE, "<|endoftext|>")
        for file in (f"{name}.jinja", f"{name}_training.jinja")
    )
    assert len(plain) == 1
    assert "très loin." in plain[0]
    # Where a template's own line ends belong is its choice.
    assert [text.strip("\n") for text in plain] == [text.strip("\n") for text in marked]


def test_a_template_that_ends_documents_itself_gets_no_second_end() -> None:
    template = "{% for m in messages %}{{ m['content'] }}"
    template += "{{ '<|endoftext|>' if m['role'] == 'assistant' else ' ' }}"
    chosen = tokenizer(template + "{% endfor %}")
    end = chosen.convert_tokens_to_ids("<|endoftext|>")
    ((ids, predicted),) = chat_encoder(chosen, end)([ONE])
    assert ids.count(end) == 1
    assert predicted[-1]


def test_a_template_that_changes_earlier_turns_is_refused() -> None:
    template = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    end = tokenizer().convert_tokens_to_ids("<|endoftext|>")
    with pytest.raises(UserError, match=r"changes what comes before an answer; got 'Où \?"):
        chat_encoder(tokenizer(template), end)([ONE])
    strict = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    with pytest.raises(UserError, match=r"cannot render 'Sois bref.*too long"):
        chat_encoder(tokenizer(strict), end)([TWO])


# ---- corpora ----


def corpus(folder: Path, chats: list[Any], key: str = "messages", **settings: Any) -> Corpus:
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({key: chat}) + "\n" for chat in chats), encoding="utf-8")
    given = {"name": "fr", "role": "target", "path": path, "chat": True} | settings
    return Corpus(**given)


def many(number: int) -> list[Any]:
    return [
        [
            {"role": "user", "content": f"question {i}"},
            {"role": "assistant", "content": f"réponse {i}"},
        ]
        for i in range(number)
    ]


def test_a_corpus_of_chats_is_a_stream_with_what_is_predicted(tmp_path: Path) -> None:
    chats, chosen = many(40), tokenizer()
    settings = {"cache_dir": tmp_path / "cache", "held_out_share": 0.25}
    train, held_out = tokenise(corpus(tmp_path, chats), chosen, **settings)
    assert held_out is not None
    assert train.num_documents + held_out.num_documents == 40
    both = train.num_bytes + held_out.num_bytes
    assert both == sum(len(chat[1]["content"].encode()) for chat in chats)
    assert train.predicted is not None
    said = chosen.decode(train.tokens[train.predicted])
    assert said.count("réponse") == said.count("<|im_end|>") == train.num_documents
    assert "question" not in said
    # Every answer has its bytes, one token each, and "<|im_end|>\n".
    assert train.num_predicted == train.num_bytes + 2 * train.num_documents
    part = train.documents(2)
    assert part.predicted is not None
    assert len(part.predicted) == part.num_tokens
    assert part.content_hash() != train.content_hash()


def test_another_template_is_another_cache(tmp_path: Path) -> None:
    chats = corpus(tmp_path, many(3))
    other = tokenizer("." + CHAT_TEMPLATE)
    folders = {
        tokenise(chats, it, cache_dir=tmp_path / "cache")[0].folder for it in (tokenizer(), other)
    }
    assert len(folders) == 2


@pytest.mark.parametrize("spliced_share", [0.0, 1.0])
def test_rows_carry_what_is_predicted_with_their_tokens(
    tmp_path: Path, spliced_share: float
) -> None:
    chosen, cache = tokenizer(), tmp_path / "cache"
    target, _ = tokenise(corpus(tmp_path, many(40)), chosen, cache_dir=cache)
    questions = [[{**m, "content": m["content"].upper()} for m in chat] for chat in many(40)]
    source, _ = tokenise(
        corpus(tmp_path, questions, name="en", role="source"), chosen, cache_dir=cache
    )
    rows = Mixture(
        [target, source], block_tokens=32, source_share=0.5, num_rows=20, seed=0,
        spliced_share=spliced_share,
    )  # fmt: skip
    both = (source, target)
    predicted, tokens = (
        sum(getattr(it, name) / len(both) / it.num_tokens for it in both)
        for name in ("num_predicted", "num_tokens")
    )
    assert rows.predicted_share == pytest.approx(predicted / tokens)
    said = ""
    for row in rows:
        said += chosen.decode(row["input_ids"][row["predicted"]])
    assert "é" in said
    assert "É" in said
    assert not {"question", "QUESTION", "<|im_start|>", "<|endoftext|>"} & set(said.split())


def test_what_was_said_is_the_text_of_a_chat(tmp_path: Path) -> None:
    chats = corpus(tmp_path, [TWO], key="dialogue", field="dialogue")
    assert list(iter_chats(chats)) == [TWO]
    assert list(iter_documents(chats)) == ["\n".join(message["content"] for message in TWO)]
    with pytest.raises(UserError, match=r"field 'dialogue'; got list; .*chat: true"):
        list(iter_documents(chats.model_copy(update={"chat": False})))


USER, ANSWER = ONE


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([], "line 1, field 'messages'; got an empty list"),
        (None, "got NoneType; allowed: a list of"),
        ("a text", "got str; allowed: a list of"),
        (["a text"], "message 1; got str"),
        ([{"role": "user"}], "message 1; got role; allowed"),
        ([{"role": "user", "content": 3}], "message 1, content; got int"),
        ([{"role": "user", "content": " "}], "message 1: content is empty"),
        ([{"role": "human", "content": "a"}], "message 1: role; got human; allowed: system"),
        ([USER, {"role": "system", "content": "a"}], "message 2: role; got system"),
        ([ANSWER], "roles; got assistant; allowed: first the user"),
        ([USER], "roles; got user; allowed: first the user, later the assistant"),
        ([{"role": "system", "content": "a"}], "roles; got system alone"),
    ],
)
def test_what_is_no_chat(tmp_path: Path, chat: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"corpus 'fr': .*{message}") as error:
        list(iter_chats(corpus(tmp_path, [chat])))
    assert "\n" not in str(error.value)


def test_chats_need_a_template_and_a_file_that_can_hold_them(tmp_path: Path) -> None:
    chats, options = corpus(tmp_path, [ONE]), {"cache_dir": tmp_path / "cache"}
    with pytest.raises(UserError, match=r"no chat template.*instruct"):
        tokenise(chats, tokenizer(None), **options)
    slow = ByT5Tokenizer()
    slow.chat_template = CHAT_TEMPLATE
    with pytest.raises(UserError, match="fast tokenizer; got ByT5Tokenizer"):
        tokenise(chats, slow, **options)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"a.txt holds no chats"):
        list(iter_chats(corpus(tmp_path, [], path=tmp_path / "a.txt")))
