"""Beginnings of texts: each read by itself, against a loop over the texts."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from neutral_residues.config.run import EvaluationSettings
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.both import BothModels
from neutral_residues.evaluation.inference import as_backbone
from neutral_residues.evaluation.windows import Windows
from neutral_residues.losses import next_token_nats
from neutral_residues.vocabulary.vocabulary import Vocabulary
from tiny_llama import NUM_NEW_TOKENS, V, extended_llama, llama_with_tokens

END_OF_TEXT, CONTEXT = 0, 11
LENGTHS = (25, 6, 10, 11, 40)  # end-of-text tokens not counted


def stream(name: str, role: Any, *, first: int = 1, **changes: Any) -> TokenStream:
    random = np.random.default_rng(len(name))
    texts = [[*random.integers(first, first + 30, n).tolist(), END_OF_TEXT] for n in LENGTHS]
    ends = np.cumsum([len(text) for text in texts])
    tokens = np.concatenate(texts).astype(np.uint16)
    return TokenStream(name, role, tokens, ends, 3 * np.array(LENGTHS), **changes)


def both(model: nn.Module, vocabulary: Any = None) -> BothModels:
    tokenizer: Any = None  # not used here
    settings = EvaluationSettings()
    return BothModels(model, None, tokenizer, tokenizer, vocabulary, END_OF_TEXT, settings, 0)


def nats_alone(model: nn.Module, text: list[int]) -> float:
    row = torch.tensor([[END_OF_TEXT, *text]])
    with torch.no_grad():
        return float(next_token_nats(model(input_ids=row).logits, row).sum())


def test_each_text_is_read_by_itself() -> None:
    model = extended_llama(head_rank=4).eval()
    sets = [stream("en", "source"), stream("fr", "target")]
    chats = stream("chat", "source", predicted=np.ones(sum(LENGTHS) + len(LENGTHS), dtype=bool))
    told: list[str] = []
    found = both(model).beginnings(
        [*sets, chats],
        Windows(END_OF_TEXT, CONTEXT, CONTEXT),
        on_progress=lambda name, done, total: told.append(name),
    )
    assert list(found) == ["en", "fr"]
    assert told[0] == "en, beginnings"
    for it in sets:
        texts = [it.document(n)[:10].tolist() for n, length in enumerate(LENGTHS) if length >= 10]
        result = found[it.name]
        assert (result.num_documents, result.num_tokens) == (4, 40)
        assert result.num_bytes == 120
        expected = sum(nats_alone(model, text) for text in texts)
        assert result.extended_nats == pytest.approx(expected, rel=1e-5)
        with as_backbone(model, None) as backbone:
            expected = sum(nats_alone(backbone, text) for text in texts)
        assert result.backbone_nats == pytest.approx(expected, rel=1e-5)
        assert result.kl_nats is not None
        assert result.kl_nats > 0


def test_with_new_tokens_source_text_is_read_in_the_backbones() -> None:
    model = llama_with_tokens().eval()
    pieces = [[32, 33]] * NUM_NEW_TOKENS
    vocabulary = cast(Vocabulary, type("Known", (), {"pieces": pieces}))
    own = [stream("en", "source"), stream("fr", "target")]
    new = [stream("en", "source", first=V), stream("fr", "target", first=V)]
    windows = Windows(END_OF_TEXT, CONTEXT, CONTEXT)
    found = both(model, vocabulary).beginnings(new, windows, backbone_streams=own)
    assert list(found) == ["en"]
    text = [own[0].document(n)[:10].tolist() for n, length in enumerate(LENGTHS) if length >= 10]
    with as_backbone(model, None) as backbone:
        expected = sum(nats_alone(backbone, it) for it in text)
    assert found["en"].backbone_nats == pytest.approx(expected, rel=1e-5)


def test_windows_of_one_token() -> None:
    model = extended_llama(head_rank=0).eval()
    found = both(model).beginnings([stream("en", "source")], Windows(END_OF_TEXT, 1, 1))
    assert found["en"].num_tokens == len(LENGTHS)


def test_sets_of_short_texts_are_left_out() -> None:
    model = extended_llama(head_rank=0).eval()
    windows = Windows(END_OF_TEXT, 60, 60)
    assert both(model).beginnings([stream("en", "source")], windows) == {}
