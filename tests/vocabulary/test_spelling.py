"""What tokens stand for, and tokenizers that take no new merges."""

import pytest
from tokenizers import Tokenizer, models
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from neutral_residues.errors import UserError
from neutral_residues.vocabulary.spelling import Spelling
from two_scripts import with_model


def test_a_word_is_its_text(demo, sentencepiece) -> None:
    for tokenizer in (demo, sentencepiece):
        spelling = Spelling.of(tokenizer)
        ids = tokenizer("hello ґанок «кіт»", add_special_tokens=False)["input_ids"]
        assert spelling.text_of_word(ids).strip() == "hello ґанок «кіт»"


def test_an_added_token_is_written_as_it_is(demo) -> None:
    spelling = Spelling.of(demo)
    assert spelling.bytes_of("<｜end▁of▁sentence｜>") == "<｜end of sentence｜>".encode()
    assert spelling.bytes_of("ĠÐº") == " к".encode()


def test_bytes_and_the_unknown_token_are_never_merged(demo, sentencepiece) -> None:
    spelling = Spelling.of(sentencepiece)
    names = {spelling.strings[id] for id in spelling.never_merged}
    assert names == {"<unk>", *(f"<0x{byte:02X}>" for byte in range(256))}
    assert Spelling.of(demo).never_merged == set()


def other_models() -> list[tuple[object, str]]:
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    wordpiece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    fast = [PreTrainedTokenizerFast(tokenizer_object=each) for each in (unigram, wordpiece)]
    return [(fast[0], "Unigram"), (fast[1], "WordPiece"), (ByT5Tokenizer(), "a slow one")]


@pytest.mark.parametrize(("tokenizer", "named"), other_models())
def test_what_has_no_merges_is_refused(tokenizer, named: str) -> None:
    with pytest.raises(UserError, match=f"takes no new tokens; got .*{named}.*; allowed: .* BPE"):
        Spelling.of(tokenizer)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("dropout", 0.1), ("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>")],
)
def test_settings_under_which_merges_mean_something_else_are_refused(demo, setting, value) -> None:
    vocabulary = demo.get_vocab() | {"##a": 2048, "a</w>": 2049}
    tokenizer = with_model(demo, merges=[], vocab=vocabulary, **{setting: value})
    with pytest.raises(UserError, match=f"takes no new tokens; got {setting}: "):
        Spelling.of(tokenizer)
