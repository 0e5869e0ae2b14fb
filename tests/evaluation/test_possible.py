"""Text is scored in tokens that a model with new tokens can give, whatever its gates do."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.possible import possible_stream, possible_tokens
from neutral_residues.evaluation.windows import Windows
from neutral_residues.tuner.embeddings import embeddings_layer
from tiny_llama import extended_llama, tiny_llama

V, N = 64, 6
PIECES = [[3, 4], [5], [6, 7, 8], [9, 10], [11, 12], [13, 14, 15]]
WINDOWS = Windows(end_of_text=2, context_tokens=16, stride_tokens=8, batch_rows=3)


def model_with(block_gate: str = "relu", bias: float = 0.4) -> PeftModel:
    settings = {"new_tokens": N, "new_tokens_rank": 4, "block_gate": block_gate}
    model = extended_llama(gate_reads="tokens", **settings)
    layer = embeddings_layer(model)
    assert layer is not None
    for reader in layer.readers().values():
        with torch.no_grad():
            reader.block_gate.weight.mul_(0.1)
            reader.block_gate.bias.fill_(bias)
    return model


def stream() -> TokenStream:
    """Three documents, every other token a new one."""
    random = np.random.default_rng(0)
    tokens = random.integers(3, V, size=60).astype(np.uint16)
    tokens[::2] = V + random.integers(N, size=30)
    ends = np.array([20, 41, 60])
    tokens[ends - 1] = 2
    return TokenStream("uk", "target", tokens, ends, np.array([50, 60, 70]))


def in_pieces(tokens: np.ndarray) -> list[int]:
    return [i for t in tokens.tolist() for i in (PIECES[t - V] if t >= V else [t])]


def test_what_is_impossible_is_cut_and_nothing_else() -> None:
    model = model_with()
    found = possible_stream(model, stream(), WINDOWS, PIECES)
    assert stream().num_tokens < found.num_tokens < len(in_pieces(stream().tokens))
    for number in range(3):  # the same text, document by document
        assert in_pieces(found.document(number)) == in_pieces(stream().document(number))
    assert found.document_bytes.tolist() == [50, 60, 70]
    layer = embeddings_layer(model)
    assert layer is not None
    for batch in WINDOWS.batches(found.num_tokens):
        inputs, targets = WINDOWS.rows(found.tokens, batch)
        shut = layer.forbids_new_tokens(inputs)
        for window, row, gates in zip(batch, targets, shut, strict=True):
            scored = slice(window.scored_from - window.start, None)
            assert not (gates[scored] & (row[scored] >= V)).any()


def test_open_and_gateless_models_need_no_cut_and_shut_ones_all() -> None:
    # Not even an open gate is open on the first token of a text, the end-of-text token before it.
    found = possible_stream(model_with(bias=100.0), stream(), WINDOWS, PIECES)
    pieces = PIECES[int(stream().tokens[0]) - V]
    assert found.tokens.tolist() == [*pieces, *stream().tokens[1:].tolist()]
    gateless = possible_stream(model_with("none"), stream(), WINDOWS, PIECES)
    assert gateless.num_tokens == 60
    shut = possible_stream(model_with(bias=-100.0), stream(), WINDOWS, PIECES)
    assert shut.tokens.tolist() == in_pieces(stream().tokens)


@pytest.mark.parametrize("bias", [-100.0, 0.4, 100.0])
def test_an_answer_is_cut_as_the_stream_is(bias: float) -> None:
    model, tokens = model_with(bias=bias), stream().tokens[:12].tolist()
    wide = Windows(end_of_text=2, context_tokens=64, stride_tokens=64)
    short = replace(
        stream(),
        tokens=stream().tokens[:12],
        document_ends=np.array([12]),
        document_bytes=np.array([30]),
    )
    whole = possible_stream(model, short, wide, PIECES).tokens.tolist()
    assert possible_tokens(model, [2], tokens, PIECES) == whole


def test_both_models_are_measured_on_their_own_tokens() -> None:
    model, text = model_with(), stream()
    own = replace(
        text,
        tokens=np.array(in_pieces(text.tokens), dtype=np.uint16),
        document_ends=np.cumsum([len(in_pieces(text.document(i))) for i in range(3)]),
    )
    found = evaluate(model, [text], WINDOWS, backbone_streams=[own], pieces=PIECES)["uk"]
    alone = evaluate(tiny_llama(), [own], WINDOWS, reference=tiny_llama())["uk"]
    cut = possible_stream(model, text, WINDOWS, PIECES)
    extended = evaluate(model, [cut], WINDOWS, reference=Wide(tiny_llama()))["uk"]
    assert found.backbone_nats == pytest.approx(alone.backbone_nats, rel=1e-12)
    assert found.extended_nats == pytest.approx(extended.extended_nats, rel=1e-12)
    assert (found.num_tokens, found.backbone_tokens) == (cut.num_tokens, own.num_tokens)
    assert found.key == own.content_hash()


class Wide(nn.Module):
    """A reference that any token can be asked of; what it says is not looked at."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, **kwargs: object) -> object:
        outputs = self.model(input_ids=input_ids.clamp(max=V - 1))
        outputs.logits = nn.functional.pad(outputs.logits, (0, N))
        return outputs
