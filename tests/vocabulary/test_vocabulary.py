"""A vocabulary in a folder: read back whole, for its own tokenizer, or not at all."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from neutral_residues.errors import UserError
from neutral_residues.vocabulary.vocabulary import FILE, Vocabulary, load_vocabulary
from two_scripts import UKRAINIAN, documents, with_model

TEXTS = documents(UKRAINIAN)


@pytest.fixture(scope="module")
def vocabulary(demo, learnt) -> Vocabulary:
    return Vocabulary(demo, learnt(demo, TEXTS, first_id=2100), "script")


@pytest.fixture
def saved(vocabulary, tmp_path: Path) -> Path:
    vocabulary.save(tmp_path)
    return tmp_path


def test_it_is_read_as_it_was_saved(vocabulary, saved, demo) -> None:
    loaded = load_vocabulary(saved, demo)
    assert (loaded.new_tokens, loaded.keep) == (vocabulary.new_tokens, "script")
    assert (loaded.size, loaded.first_id) == (60, 2100)
    ids = vocabulary.tokenizer(TEXTS)["input_ids"]
    assert loaded.tokenizer(TEXTS)["input_ids"] == ids
    assert AutoTokenizer.from_pretrained(saved)(TEXTS)["input_ids"] == ids
    assert [[demo.decode(pieces)] for pieces in loaded.pieces] == [
        [token.text] for token in vocabulary.new_tokens.tokens
    ]


def test_a_folder_without_one_has_none(demo, tmp_path: Path) -> None:
    assert load_vocabulary(tmp_path, demo) is None


def test_another_tokenizer_is_refused(saved, demo) -> None:
    other = with_model(
        demo, merges=list(json.loads(demo.backend_tokenizer.to_str())["model"]["merges"])[:-1]
    )
    with pytest.raises(UserError, match="continues another tokenizer; got tokenizer "):
        load_vocabulary(saved, other)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"first_id": 2100', '"first_id": 2101'),
        ('"keep": "script"', '"keep": "unseen"'),
        ('"saved": ', '"saved": 1'),
        ('"version": 1', '"version": 2'),
        ("}", ""),
    ],
)
def test_damage_is_noticed(saved, demo, old: str, new: str) -> None:
    file = saved / FILE
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=FILE):
        load_vocabulary(saved, demo)
