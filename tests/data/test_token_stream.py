"""A stream of tokens: its blocks, and how it is handed to other processes."""

import pickle

import numpy as np
import pytest

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.data.tokenise import tokenise
from neutral_residues.errors import UserError


@pytest.fixture
def make(tmp_path, tokenizer):
    def tokenised(corpus):
        return tokenise(corpus, tokenizer, cache_dir=tmp_path / "cache")

    return tokenised


def test_blocks_leave_out_the_tail(make, write_jsonl):
    stream, _ = make(write_jsonl(["abcdef", "gh"]))
    assert stream.num_tokens == 10
    np.testing.assert_array_equal(stream.blocks(4), stream.tokens[:8].reshape(2, 4))
    assert stream.blocks(10).shape == (1, 10)
    with pytest.raises(
        UserError, match=r"'fr'.*got 10 tokens; allowed: at least block_tokens = 11"
    ):
        stream.blocks(11)


def test_streams_pickle_as_their_folder(make, write_jsonl):
    stream, _ = make(write_jsonl(["abc" * 400, "gh"]))
    again = pickle.loads(pickle.dumps(stream))
    assert len(pickle.dumps(stream)) < 1000 < stream.num_tokens
    np.testing.assert_array_equal(again.tokens, stream.tokens)
    in_memory = TokenStream(
        "fr", "target", stream.tokens[:5], stream.document_ends[:1], stream.document_bytes[:1]
    )
    assert pickle.loads(pickle.dumps(in_memory)).tokens.tolist() == stream.tokens[:5].tolist()
