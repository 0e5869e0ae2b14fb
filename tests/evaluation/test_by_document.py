"""Each document by itself: the same as one at a time, whatever stands beside it."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.by_document import (
    document_batches,
    document_nats,
    gate_logits,
    per_document,
)
from neutral_residues.evaluation.inference import as_backbone
from neutral_residues.evaluation.windows import Windows
from neutral_residues.tuner.gates import observe_gates, under_thresholds
from neutral_residues.tuner.thresholds import Thresholds
from tiny_llama import extended_llama

LENGTHS = [5, 20, 1, 16, 33]
WINDOWS = Windows(0, context_tokens=16, stride_tokens=8, batch_rows=3)


def stream() -> TokenStream:
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 64, sum(LENGTHS)).astype(np.uint16)
    return TokenStream("en", "source", tokens, np.cumsum(LENGTHS), np.array(LENGTHS))


def test_every_token_is_scored_once() -> None:
    text = stream()
    places = [place for batch in document_batches(text, WINDOWS) for place in batch.places]
    scored = [token for first, last in places for token in range(first, last)]
    assert sorted(scored) == list(range(text.num_tokens))
    sizes = per_document(text, np.ones(text.num_tokens))
    assert sizes.tolist() == LENGTHS


@pytest.mark.parametrize("reads", ["tokens", "layer"])
def test_a_document_is_read_alone(reads: str) -> None:
    model, text = extended_llama(gate_reads=reads), stream()
    nats = document_nats(model, text, WINDOWS)
    logits = gate_logits(model, text, WINDOWS)
    for number in (0, 2, 3):  # that fit into one window
        tokens = torch.tensor(text.document(number).astype(np.int64))[None]
        inputs = torch.cat([torch.zeros(1, 1, dtype=torch.long), tokens[:, :-1]], dim=1)
        with torch.no_grad(), observe_gates(model) as seen:
            expected = F.cross_entropy(model(input_ids=inputs).logits[0], tokens[0])
        assert nats[number] == pytest.approx(float(expected) * LENGTHS[number], rel=1e-5)
        end = int(text.document_ends[number])
        for name, values in seen.items():
            found = logits[name][end - LENGTHS[number] : end]
            np.testing.assert_allclose(found, values.flatten().numpy(), atol=1e-5)
    assert set(logits) == set(seen)


@pytest.mark.parametrize(("reads", "share_read"), [("tokens", 0.6), ("layer", 1.0)])
def test_a_document_on_which_no_gate_opens_is_not_read_again(reads: str, share_read: float) -> None:
    model, text = extended_llama(gate_reads=reads), stream()
    with as_backbone(model) as backbone:
        backbone_D = document_nats(backbone, text, WINDOWS)
    logits = gate_logits(model, text, WINDOWS)
    # Above it is one token.
    values = {name: float(np.sort(it)[-2]) for name, it in logits.items()}
    rows: list[int] = []
    model.register_forward_hook(lambda *call: rows.append(len(call[2].logits)))
    with under_thresholds(model, Thresholds("cut", values, weights="")):
        expected_D = document_nats(model, text, WINDOWS)
        num_all, tokens = sum(rows), []
        rows.clear()
        nats_D = document_nats(model, text, WINDOWS, backbone_D=backbone_D, on_tokens=tokens.append)
    np.testing.assert_allclose(nats_D, expected_D, rtol=1e-6)
    assert sum(tokens) == text.num_tokens
    assert sum(rows) <= share_read * num_all
    assert (nats_D != backbone_D).any()


def test_windows_are_fewer_where_their_logits_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, text = extended_llama(gate_reads="layer"), stream()
    nats_D, logits, rows = (
        document_nats(model, text, WINDOWS),
        gate_logits(model, text, WINDOWS),
        [],
    )
    limit = 2 * WINDOWS.context_tokens * model.config.vocab_size
    monkeypatch.setattr("neutral_residues.evaluation.windows.LOGITS_PER_BATCH", limit)
    model.register_forward_hook(lambda *call: rows.append(len(call[2].logits)))
    np.testing.assert_allclose(document_nats(model, text, WINDOWS), nats_D, rtol=1e-6)
    assert max(rows) == 2
    rows.clear()
    for name, values in gate_logits(model, text, WINDOWS).items():
        np.testing.assert_allclose(values, logits[name], atol=1e-5)
    assert max(rows) == 2


def test_by_the_whole_stream_a_document_alone_is_the_same() -> None:
    model, text = extended_llama(gate_reads="layer"), stream()
    alone = TokenStream("en", "source", text.document(4), np.array([33]), np.array([33]))
    whole, single = (gate_logits(model, it, WINDOWS) for it in (text, alone))
    for name, values in single.items():
        np.testing.assert_allclose(whole[name][-33:], values, atol=1e-5)
