"""Sizes of texts: exact for small ones and for those in the cache, close for others."""

from pathlib import Path
from typing import Any

import pytest

from neutral_residues.config.data import Corpus
from neutral_residues.data import text_size as module
from neutral_residues.data.text_size import TextSize, text_size
from neutral_residues.data.tokenise import tokenise
from tiny_run import TARGET_WORDS, byte_tokenizer, make_text


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = make_text(tmp_path / "fr.jsonl", TARGET_WORDS, documents=200)
    return Corpus(name="fr", role="target", path=path)


def sizes(corpus: Corpus, folder: Path, share: float = 0.0) -> tuple[Any, Any]:
    cache_dir = folder / "cache"
    return text_size(corpus, byte_tokenizer(), cache_dir=cache_dir, held_out_share=share)


def test_a_small_text_is_counted(corpus: Corpus, tmp_path: Path) -> None:
    train, held_out = sizes(corpus, tmp_path, share=0.2)
    options = {"cache_dir": tmp_path / "cache", "held_out_share": 0.2}
    streams = tokenise(corpus, byte_tokenizer(), **options)
    assert (train, held_out) == (TextSize.of(streams[0]), TextSize.of(streams[1]))
    assert train.is_exact


def test_a_large_text_is_estimated_until_it_is_in_the_cache(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_BYTES", 4000)
    about, none = sizes(corpus, tmp_path)
    assert (about.is_exact, none) == (False, None)
    assert not (tmp_path / "cache").exists()
    train, held_out = sizes(corpus, tmp_path, share=0.25)
    assert train.num_tokens == pytest.approx(0.75 * about.num_tokens, abs=1)
    assert held_out.num_bytes == pytest.approx(0.25 * about.num_bytes, abs=1)
    tokenise(corpus, byte_tokenizer(), cache_dir=tmp_path / "cache")
    exact, _ = sizes(corpus, tmp_path)
    assert exact.is_exact
    assert (about.num_documents, about.num_bytes) == (exact.num_documents, exact.num_bytes)
    assert about.num_tokens == pytest.approx(exact.num_tokens, rel=0.01)


def test_a_sample_is_spread_over_the_text(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE_BYTES", 4000)
    sample = module._Sample(corpus)
    texts = list(module.iter_documents(corpus))
    assert sample.texts == texts[:: sample.every]
    assert 2000 - 400 < sample.sampled_bytes <= 4000
