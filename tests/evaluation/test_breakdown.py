"""From sums to the record: kinds add up to the set, documents are the right ones, texts are the
tokens' own."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.breakdown import breakdowns, token_texts
from neutral_residues.evaluation.metrics import SetScore, TokenSums
from tiny_run import END_OF_TEXT, byte_tokenizer


def measured(*documents: str) -> tuple[SetScore, TokenStream]:
    """Every token costs 1 nat before; after, "x" costs 3, a digit 0.5, and all others 1."""
    tokens = [[*text.encode(), END_OF_TEXT] for text in documents]
    ids = byte_ids(np.concatenate(tokens))
    ends = np.cumsum([len(document) for document in tokens])
    sizes = np.array([len(text.encode()) for text in documents])
    sums = TokenSums.empty(260, ends)
    signs = np.concatenate(tokens)
    after = np.where(signs == ord("x"), 3.0, np.where((signs >= 48) & (signs < 58), 0.5, 1.0))
    sums.add(0, ids, after, np.ones(len(ids)))
    score = SetScore(
        "en", "source", len(ids), int(sizes.sum()), len(documents), float(after.sum()), float(len(ids)), 0.0, None,
        by_token=sums,
    )  # fmt: skip
    return score, TokenStream("en", "source", ids, ends, sizes)


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
    score, stream = measured("Qbc def 12, xyz.", "abc abc ghi 3", "x")
    (found,) = breakdowns([score], [stream], byte_tokenizer())
    assert sum(c.num_tokens for c in found.classes) == score.num_tokens
    assert sum(c.num_types for c in found.classes) == found.num_types
    assert sum(c.extended for c in found.classes) == pytest.approx(
        score.extended_bits_per_byte, rel=1e-12
    )
    assert sum(c.backbone for c in found.classes) == pytest.approx(
        score.backbone_bits_per_byte, rel=1e-12
    )
    assert found.change == pytest.approx(score.rise_bits_per_byte)
    by_kind = {c.kind: c for c in found.classes}
    assert by_kind["digits"].num_tokens == 3
    assert by_kind["digits"].extended == pytest.approx(by_kind["digits"].backbone / 2)
    assert (by_kind["end of text"].num_tokens, by_kind["names"].num_types) == (3, 1)
    assert found.carriers[0].text == "x"
    assert found.num_carriers == 1


def test_the_worst_documents_are_those_that_rose_most_per_byte() -> None:
    score, stream = measured(
        "plain words and more", "some x, some not at all", "one x of ten", "12 34 56 78", "x"
    )
    (found,) = breakdowns([score], [stream], byte_tokenizer())
    assert [document.number for document in found.documents] == [
        2,
        1,
        0,
    ]  # the last is too short to say anything
    assert found.documents[0].excerpt == "one x of ten"
    assert found.documents[0].extended > found.documents[0].backbone


def test_a_set_without_backbone_is_left_out() -> None:
    score, stream = measured("x")
    assert (
        breakdowns(
            [SetScore("en", "source", 1, 1, 1, 1.0, None, None, None)], [stream], byte_tokenizer()
        )
        == []
    )
    assert len(breakdowns([score], [stream], byte_tokenizer())) == 1


def test_a_token_keeps_the_blank_that_it_begins_with() -> None:
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
