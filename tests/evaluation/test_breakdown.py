"""From sums to the record: kinds add up to the set, documents are the right ones, texts are the
tokens' own."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.breakdown import breakdown, token_texts
from neutral_residues.evaluation.sums import TokenSums
from neutral_residues.results.set_result import bits_per_byte
from tiny_run import END_OF_TEXT, byte_tokenizer


def measured(*documents: str) -> tuple[TokenSums, TokenStream]:
    """Every token costs 1 nat before; after, "x" costs 3, a digit 0.5, and all others 1."""
    tokens = [[*text.encode(), END_OF_TEXT] for text in documents]
    ids = byte_ids(np.concatenate(tokens))
    ends = np.cumsum([len(document) for document in tokens])
    sizes = np.array([len(text.encode()) for text in documents])
    sums = TokenSums.empty(260, ends)
    values = np.concatenate(tokens)
    is_digit = (values >= ord("0")) & (values <= ord("9"))
    after = np.where(values == ord("x"), 3.0, np.where(is_digit, 0.5, 1.0))
    sums.add(np.arange(len(ids)), ids, after, np.ones(len(ids)))
    return sums, TokenStream("en", "source", ids, ends, sizes)


def byte_ids(values: np.ndarray) -> np.ndarray:
    """Bytes as the ids of the byte tokenizer, whose alphabet is in another order."""
    tokenizer = byte_tokenizer()
    table = np.array(
        [
            *(tokenizer.encode(chr(b), add_special_tokens=False)[0] for b in range(128)),
            *range(128, 257),
        ]
    )
    return table[values]


def test_kinds_add_up_to_the_set() -> None:
    sums, stream = measured("Qbc def 12, xyz.", "abc abc ghi 3", "x")
    found = breakdown(sums, stream, byte_tokenizer())
    assert sum(c.num_tokens for c in found.classes) == stream.num_tokens
    assert sum(c.num_types for c in found.classes) == found.num_types
    assert sum(c.extended for c in found.classes) == pytest.approx(
        bits_per_byte(sums.extended_V.sum(), stream.num_bytes), rel=1e-12
    )
    assert sum(c.backbone for c in found.classes) == pytest.approx(
        bits_per_byte(stream.num_tokens, stream.num_bytes), rel=1e-12
    )
    by_kind = {c.kind: c for c in found.classes}
    assert by_kind["digits"].num_tokens == 3
    assert by_kind["digits"].extended == pytest.approx(by_kind["digits"].backbone / 2)
    assert (by_kind["end of text"].num_tokens, by_kind["names"].num_types) == (3, 1)
    assert found.carriers[0].text == "x"
    assert found.num_carriers == 1


def test_the_worst_documents_are_those_that_rose_most_per_byte() -> None:
    sums, stream = measured(
        "plain words and more", "some x, some not at all", "one x of ten", "12 34 56 78", "x"
    )
    found = breakdown(sums, stream, byte_tokenizer())
    assert [document.number for document in found.documents] == [
        2,
        1,
        0,
    ]  # the last is too short to say anything
    assert found.documents[0].excerpt == "one x of ten"
    assert found.documents[0].extended > found.documents[0].backbone


def test_a_token_keeps_the_space_that_it_begins_with() -> None:
    """Also where a tokenizer drops it from what it decodes first."""
    pieces = [("<unk>", 0.0), ("x", -1.0), ("▁the", -1.0), ("the", -1.0), ("▁x", -1.0), ("▁", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.normalizer = None
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert fast.decode([2]) == "the"
    assert token_texts(fast, [2, 3]) == [" the", "the"]
    assert token_texts(byte_tokenizer(), byte_ids(np.array([32, 65])).tolist()) == [" ", "A"]
    assert "\ufffd" in token_texts(byte_tokenizer(), byte_tokenizer().encode("é"))[0]
