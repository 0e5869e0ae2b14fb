"""The vocabulary of a run: what it is learnt from, once, and what a user can get wrong."""

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from damage import damages
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.vocabulary import run_vocabulary as module
from neutral_residues.vocabulary.run_vocabulary import learned_vocabulary
from two_scripts import ENGLISH, FRENCH, UKRAINIAN, documents, sentencepiece_like, write_texts


@pytest.fixture
def config(tmp_path):
    """A run with Ukrainian and English text, in files of `tmp_path`."""
    write_texts(tmp_path / "uk.jsonl", documents(UKRAINIAN))
    write_texts(tmp_path / "en.jsonl", documents(ENGLISH))

    def config(size: int = 30, keep: str = "script", **data: Any):
        corpora = [
            {"name": name, "role": role, "path": str(tmp_path / f"{name}.jsonl")}
            for name, role in (("uk", "target"), ("en", "source"))
        ]
        values = {"train": corpora, "evaluate": corpora, "cache": str(tmp_path / "cache")} | data
        vocabulary = {"size": size, "keep": keep} if size else {}
        return make_run({"model": "x", "output": "y", "data": values, "vocabulary": vocabulary})

    return config


def test_a_run_gets_the_tokens_that_it_asks_for(config, demo) -> None:
    vocabulary = learned_vocabulary(config(), demo, first_id=2048)
    assert (vocabulary.size, vocabulary.first_id, vocabulary.keep) == (30, 2048, "script")
    target, source = documents(UKRAINIAN), documents(ENGLISH)
    new, old = (
        sum(map(len, tokenizer(target)["input_ids"])) for tokenizer in (vocabulary.tokenizer, demo)
    )
    assert new < old / 2
    assert vocabulary.tokenizer(source)["input_ids"] == demo(source)["input_ids"]
    assert learned_vocabulary(config(size=0), demo, first_id=2048) is None


def test_pairs_teach_tokens_for_what_is_predicted_alone(config, demo, tmp_path: Path) -> None:
    """The prompts are English, which the backbone's tokens have to go on spelling."""
    lines = zip(cycle(documents(ENGLISH)), documents(UKRAINIAN), strict=False)
    pairs = [json.dumps({"en": english, "uk": ukrainian}) for english, ukrainian in lines]
    (tmp_path / "pairs.jsonl").write_text("\n".join(pairs))
    path, uk = str(tmp_path / "pairs.jsonl"), {"name": "uk", "role": "target", "field": "uk"}
    en = {"name": "en", "role": "source", "path": str(tmp_path / "en.jsonl")}
    of_pairs, of_both = (
        learned_vocabulary(
            config(keep="unseen", train=[uk | {"path": path, "prompt": "en"} | options, en]),
            demo,
            first_id=2048,
        )
        for options in ({}, {"completion_only_loss": False})
    )
    alone = learned_vocabulary(
        config(keep="unseen", train=[uk | {"path": path}, en]), demo, first_id=2048
    )
    assert of_pairs.new_tokens == alone.new_tokens
    assert of_both.new_tokens != alone.new_tokens


def test_tokens_are_learnt_once(config, demo, monkeypatch: pytest.MonkeyPatch) -> None:
    first = learned_vocabulary(config(), demo, first_id=2048)
    with monkeypatch.context() as patch:
        patch.setattr(module, "learn", lambda *_, **__: pytest.fail("learnt again"))
        again = learned_vocabulary(config(), demo, first_id=2048)
        assert again.new_tokens == first.new_tokens
        # A smaller vocabulary is the beginning of a larger one.
        fewer = learned_vocabulary(config(size=7), demo, first_id=2048)
        assert fewer.new_tokens.tokens == first.new_tokens.tokens[:7]
        with pytest.raises(pytest.fail.Exception):
            learned_vocabulary(config(keep="unseen"), demo, first_id=2048)
        with pytest.raises(pytest.fail.Exception):
            learned_vocabulary(config(), demo, first_id=2050)


def test_a_damaged_cache_is_made_again_and_says_so(config, demo, tmp_path, caplog) -> None:
    first = learned_vocabulary(config(), demo, first_id=2048)
    (file,) = (tmp_path / "cache").glob("vocabulary-*.json")
    whole = file.read_bytes()
    for damage in damages(file):
        caplog.clear()
        assert learned_vocabulary(config(), demo, first_id=2048).new_tokens == first.new_tokens
        assert file.read_bytes() == whole, damage
        assert len(caplog.messages) == ("gone" not in damage)


def test_held_out_documents_are_not_learnt_from(config, demo) -> None:
    whole = learned_vocabulary(config(), demo, first_id=2048).new_tokens.num_bytes
    part = learned_vocabulary(config(evaluate=[], held_out_share=0.5), demo, first_id=2048)
    assert 0.2 * whole < part.new_tokens.num_bytes < 0.8 * whole


def test_only_the_beginning_of_a_large_text_is_read(config, demo, monkeypatch) -> None:
    monkeypatch.setattr(module, "TARGET_BYTES", 1000)
    read = learned_vocabulary(config(), demo, first_id=2048).new_tokens.num_bytes
    assert 1000 <= read < 1500


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"size": 100_000}, {}, r"got 100000; allowed: at most \d+ with keep: script"),
        ({}, {"source_share": 0, "train": ["uk"]}, "need source text to know what to keep"),
        ({}, {"source_share": 1, "train": ["en"]}, "need target text to learn from"),
        ({}, {"train": ["en", "fr"]}, "got LATIN, which the source has too; .* unseen"),
    ],
)
def test_what_a_user_can_get_wrong(config, demo, tmp_path, settings, data, message) -> None:
    write_texts(tmp_path / "fr.jsonl", documents(FRENCH))
    roles = {"uk": "target", "fr": "target", "en": "source"}
    if "train" in data:
        corpora = [
            {"name": name, "role": roles[name], "path": str(tmp_path / f"{name}.jsonl")}
            for name in data["train"]
        ]
        data = data | {"train": corpora}
    with pytest.raises(UserError, match=message):
        learned_vocabulary(config(**settings, **data), demo, first_id=2048)


def test_ids_of_the_tokenizer_are_never_given_twice(config, demo) -> None:
    with pytest.raises(UserError, match="got 2,048 and 2,047"):
        learned_vocabulary(config(), demo, first_id=2047)


def test_characters_that_are_only_bytes_give_no_tokens(config, tmp_path) -> None:
    write_texts(tmp_path / "uk.jsonl", ["日本語 の 文章"] * 9)
    tokenizer = sentencepiece_like("metaspace")
    with pytest.raises(UserError, match=r"takes no new tokens for this target; got \d\d % of it"):
        learned_vocabulary(config(), tokenizer, first_id=1000)
