"""A tokenizer with new merges: the same in all else, saved and loaded as any other."""

import copy
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from neutral_residues.errors import UserError
from neutral_residues.vocabulary.tokenizer import extended_tokenizer
from paths import DEMO_BACKBONE
from two_scripts import ENGLISH, UKRAINIAN, documents


@pytest.fixture(scope="module", params=["TokenizersBackend", "GPT2Tokenizer"])
def tokenizer(request, demo, tmp_path_factory) -> PreTrainedTokenizerBase:
    """The demo's, as itself and as a class that makes its backend anew from vocabulary and merges;
    with a chat template, and a special token behind the vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    demo.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings |= {"tokenizer_class": request.param, "chat_template": "{{ messages }}"}
    settings |= {"unk_token": "<|eos|>", "bos_token": "<|eos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.model_max_length = 10**9
    assert type(tokenizer).__name__ == request.param
    return tokenizer


TEXTS = [*documents(UKRAINIAN), *documents(ENGLISH), "<|im_start|>кіт<|eos|> the cat", "\n\n 😀 \t"]


def test_saved_and_loaded_it_gives_the_same_tokens(tokenizer, learnt, tmp_path: Path) -> None:
    found = learnt(tokenizer, TEXTS, first_id=2100)
    extended = extended_tokenizer(tokenizer, found)
    extended.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = extended(TEXTS)["input_ids"]
    assert type(loaded) is type(extended) is type(tokenizer)
    assert loaded(TEXTS)["input_ids"] == ids != tokenizer(TEXTS)["input_ids"]
    assert {id for text in ids for id in text if id >= 2050} <= set(range(2100, 2160))
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.added_tokens_decoder == tokenizer.added_tokens_decoder
    for text, new in zip(TEXTS, ids, strict=True):
        assert extended.decode(new) == tokenizer.decode(tokenizer(text)["input_ids"])
    # Each new token taken apart, the text has its old tokens.
    pieces = {found.first_id + i: token.pieces for i, token in enumerate(found.tokens)}
    apart = [[old for id in text for old in pieces.get(id, (id,))] for text in ids]
    assert apart == tokenizer(TEXTS)["input_ids"]


def test_old_tokens_keep_their_ids(tokenizer, learnt) -> None:
    found = learnt(tokenizer, TEXTS)
    extended = extended_tokenizer(tokenizer, found)
    old, new = tokenizer.get_vocab(), extended.get_vocab()
    assert {token: new[token] for token in old} == old
    assert len(new) == len(old) + len(found.tokens)
    assert tokenizer.get_vocab() == old  # the tokenizer that was given is as it was


def test_a_sentencepiece_like_one_works_too(sentencepiece, learnt, tmp_path: Path) -> None:
    extended = extended_tokenizer(sentencepiece, learnt(sentencepiece, TEXTS))
    extended.save_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)(TEXTS)["input_ids"]
    assert extended(TEXTS)["input_ids"] == ids != sentencepiece(TEXTS)["input_ids"]
    for text, new in zip(TEXTS, ids, strict=True):
        assert extended.decode(new) == sentencepiece.decode(sentencepiece(text)["input_ids"])
    # Letters that it knows as bytes only stay bytes.
    assert not any("ґ" in token for token in extended.get_vocab())


def test_a_class_that_does_not_load_what_it_saves_is_refused(demo, learnt) -> None:
    class Forgetful(type(demo)):
        @classmethod
        def from_pretrained(cls, folder, **options):
            return AutoTokenizer.from_pretrained(DEMO_BACKBONE)

    demo = copy.copy(demo)
    demo.__class__ = Forgetful
    with pytest.raises(UserError, match="Forgetful does not load"):
        extended_tokenizer(demo, learnt(demo, TEXTS))
