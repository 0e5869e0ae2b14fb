"""A tokenizer of 256 bytes and one end-of-text token: what a test expects can be counted by
hand."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from neutral_residues.config.run import Corpus

END_OF_TEXT = 256


def make_byte_tokenizer(**settings) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {sign: i for i, sign in enumerate(alphabet)} | {"<eot>": END_OF_TEXT}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **({"eos_token": "<eot>"} | settings)
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """The function that makes one, with settings for Transformers' side of it."""
    return make_byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    # A window of 8 tokens: documents are longer, and that must neither cut nor warn.
    return make_byte_tokenizer(model_max_length=8)


@pytest.fixture
def write_jsonl(tmp_path: Path):
    """Writes documents to a file and gives the corpus."""

    def write(documents: list[str], name: str = "fr", role: str = "target", **settings) -> Corpus:
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8"
        )
        return Corpus(name=name, role=role, path=path, **settings)

    return write
