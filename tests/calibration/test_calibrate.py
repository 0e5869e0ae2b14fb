"""Thresholds found on a tiny model: what they promise holds on text that was not used."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from neutral_residues import UserError
from neutral_residues.calibration.calibrate import Found, calibrate
from neutral_residues.calibration.losses import GateLogits, open_shares, worse_documents
from neutral_residues.calibration.units import Units
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.gates import set_thresholds
from tiny_calibration import END_OF_TEXT, LOOSE, WINDOWS, model, text
from tiny_llama import logits


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def measured(found: Found, extended: PeftModel, stream: TokenStream) -> float:
    """Mean loss over the documents of a new text."""
    units = Units.of(stream)
    wanted = found.wanted
    losses_at = open_shares(GateLogits(extended, units, WINDOWS, found.how), units)
    if wanted.kind == "documents":
        losses_at = worse_documents(extended, units, WINDOWS, found.how, wanted.rise_percent)
    losses = losses_at(found.position)
    return float(np.concatenate([losses.tuning, losses.testing]).mean())


@pytest.mark.parametrize("reads", ["tokens", "layer"])
@pytest.mark.parametrize("kind", ["tokens", "documents"])
@pytest.mark.parametrize("form", ["cut", "shift"])
def test_what_is_promised_holds_on_other_text(reads: str, kind: Any, form: Any) -> None:
    extended = model(gate_reads=reads)
    before = logits(extended)
    wanted = replace(LOOSE, confidence=0.99, kind=kind, form=form, rise_percent=2.0)
    found = calibrate(extended, [Units.of(text())], WINDOWS, wanted)
    assert torch.equal(logits(extended), before), "the model stays as it is"
    (result,) = found.sets
    assert result.loss < wanted.at_most < result.trained_loss
    assert result.exact_share > result.trained_exact_share
    noise = 0.03  # of the mean over 300 documents
    assert measured(found, extended, text(300, seed=1)) <= wanted.at_most + noise
    set_thresholds(extended, found.thresholds())
    assert not torch.equal(logits(extended), before)


def test_on_average_asks_for_less() -> None:
    extended = model(gate_reads="tokens")
    sure = calibrate(extended, [Units.of(text())], WINDOWS, replace(LOOSE, confidence=0.99))
    average = calibrate(extended, [Units.of(text())], WINDOWS, replace(LOOSE, confidence=None))
    assert average.position.share > sure.position.share
    assert "on average over calibrations" in sentence(average)


def sentence(found: Found) -> str:
    return found.calibration(training_text_checked=True).promise.sentence


def test_several_texts_share_one_dial_and_split_the_error() -> None:
    extended = model(gate_reads="tokens")
    loud = text(seed=3, name="loud")
    one = calibrate(extended, [Units.of(text())], WINDOWS, LOOSE)
    both = calibrate(extended, [Units.of(text()), Units.of(loud)], WINDOWS, LOOSE)
    assert [found.name for found in both.sets] == ["en", "loud"]
    assert all(found.loss < LOOSE.at_most for found in both.sets)
    assert "like en (108 documents) and like loud (108 documents)" in sentence(both)
    (value,) = one.position.values.values()
    # Each must hold with 95 % confidence now.
    alone = calibrate(extended, [Units.of(text())], WINDOWS, replace(LOOSE, confidence=0.95))
    assert value <= next(iter(alone.position.values.values()))


def test_a_source_counts_once_however_long_it_is() -> None:
    """One source of three quarters of the documents, in which every gate opens."""
    stream = text(400)
    groups = [f"source {n}" if n < 100 else "long" for n in range(400)]
    units = Units.of(stream, groups, "source")
    assert (units.num_units, units.num_testing) == (101, 91)
    is_long = np.arange(400) >= 100
    losses = units.means(is_long.astype(float), np.ones(400))
    assert np.concatenate([losses.tuning, losses.testing]).mean() == pytest.approx(1 / 101)
    assert not units.shares(is_long).are_binary
    assert Units.of(stream).shares(is_long).are_binary
    chosen = units.one_document_each()
    assert len(chosen) == 91
    assert sum(number >= 100 for number in chosen) <= 1


def test_what_cannot_be_promised() -> None:
    extended = model(gate_reads="tokens")
    few = Units.of(text(50))
    with pytest.raises(UserError, match=r"too few units for 1 % .*got 50 documents; allowed: 332"):
        calibrate(extended, [few], WINDOWS)
    grouped = Units.of(text(50), ["one", "two"] * 25, "book")
    with pytest.raises(UserError, match="got 2 different 'book'"):
        calibrate(extended, [grouped], WINDOWS)
    with pytest.raises(UserError, match="has no gates"):
        calibrate(model(block_gate="none"), [few], WINDOWS, LOOSE)
    with pytest.raises(UserError, match="can be exactly 0"):
        calibrate(model(block_gate="elu"), [few], WINDOWS, LOOSE)
    for wrong in ({"at_most": 0.0}, {"confidence": 1.0}, {"rise_percent": -1.0}):
        with pytest.raises(UserError, match="allowed"):
            replace(LOOSE, **wrong)


def test_if_even_the_most_silent_position_is_too_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    extended = model(gate_reads="tokens")
    units = Units.of(text())
    monkeypatch.setattr(GateLogits, "open_at", lambda *_: np.ones(units.stream.num_tokens, bool))
    with pytest.raises(UserError, match=r"no threshold keeps that promise on en; got 1e\+02 %"):
        calibrate(extended, [units], WINDOWS, LOOSE)


def test_what_is_measured_is_what_the_model_does() -> None:
    """The share of open gates, counted by hand on the calibrated model, document by document."""
    extended = model(gate_reads="tokens")
    stream = text(40, seed=5)
    found = calibrate(extended, [Units.of(text())], WINDOWS, replace(LOOSE, over=12))
    units = Units.of(stream)
    is_open = GateLogits(extended, units, WINDOWS, found.how).open_at(found.position)
    set_thresholds(extended, found.thresholds())
    layer, counted = embeddings_layer(extended), []
    assert layer is not None
    for number in range(40):
        tokens = torch.tensor(stream.document(number).astype(np.int64))
        with torch.no_grad():
            extended(input_ids=torch.cat([torch.tensor([END_OF_TEXT]), tokens[:-1]])[None])
        counted.append(layer.gates["default"].gate[0, :, 0] > 0)
    assert torch.cat(counted).numpy().tolist() == is_open.tolist()
    assert 0 < is_open.mean() < 0.2
