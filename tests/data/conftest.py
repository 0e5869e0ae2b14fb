"""A tokenizer of 256 bytes and one end-of-text token: what a test expects can be counted by
hand."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from neutral_residues.config.data import Corpus
from tiny_run import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    # A window of 8 tokens: documents are longer, and that must neither cut nor warn.
    return byte_tokenizer(model_max_length=8)


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
