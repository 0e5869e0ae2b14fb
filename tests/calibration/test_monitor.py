"""A monitor: the same numbers from a file as from passes, token by token, padded, in a batch."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from neutral_residues import UserError
from neutral_residues.calibration.calibrate import calibrate
from neutral_residues.calibration.monitor import GateMonitor, TextGates, unlike, watch
from neutral_residues.calibration.units import Units
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.results.calibration import Calibration
from neutral_residues.tuner.gates import set_thresholds
from tiny_calibration import END_OF_TEXT, LOOSE, WINDOWS, model, text


def calibrated(reads: str) -> tuple[PeftModel, Calibration]:
    extended = model(gate_reads=reads)
    found = calibrate(extended, [Units.of(text())], WINDOWS, LOOSE)
    set_thresholds(extended, found.thresholds())
    return extended, found.calibration(training_text_checked=True)


def inputs_of(stream: TokenStream, number: int) -> torch.Tensor:
    tokens = torch.tensor(stream.document(number).astype(np.int64))
    return torch.cat([torch.tensor([END_OF_TEXT]), tokens[:-1]])


def assert_same(found: TextGates, expected: TextGates) -> None:
    assert found.num_tokens == expected.num_tokens
    assert found.open_share == pytest.approx(expected.open_share)
    assert found.p_value == pytest.approx(expected.p_value)


@torch.no_grad()
def test_passes_are_watched_as_documents_are() -> None:
    extended, calibration = calibrated("tokens")
    stream = text(6, seed=5)
    expected = watch(extended, stream, WINDOWS, calibration)
    rows = [inputs_of(stream, number) for number in range(6)]
    with GateMonitor(extended, calibration) as monitor:
        for row, alone in zip(rows, expected, strict=True):
            cache = None  # a prompt, and then token by token
            for part in [row[None, :9], *row[None, 9:].split(1, dim=1)]:
                cache = extended(input_ids=part, past_key_values=cache, use_cache=True)
                cache = cache.past_key_values
            (found,) = monitor.rows()
            assert_same(found, alone)
            monitor.reset()
        longest = max(map(len, rows))
        padded = [torch.cat([torch.full((longest - len(row),), 9), row]) for row in rows]
        mask = [torch.arange(longest) >= longest - len(row) for row in rows]
        extended(input_ids=torch.stack(padded), attention_mask=torch.stack(mask).long())
        for found, alone in zip(monitor.rows(), expected, strict=True):
            assert_same(found, alone)
        with pytest.raises(UserError, match=r"call reset\(\)"):
            extended(input_ids=rows[0][None])
        with extended.disable_adapter():
            extended(input_ids=rows[0][None])  # nothing to watch
    assert any(0 < found.open_share < 1 for found in expected)


@torch.no_grad()
def test_gates_in_the_layers() -> None:
    extended, calibration = calibrated("layer")
    stream = TokenStream("en", "source", text(1).tokens[:15], np.array([15]), np.array([14]))
    (expected,) = watch(extended, stream, WINDOWS, calibration)
    with GateMonitor(extended, calibration) as monitor:
        extended(input_ids=inputs_of(stream, 0)[None])
    (found,) = monitor.rows()
    assert (found.num_tokens, found.p_value) == (15, None), "too short to be compared"
    assert found.open_share == pytest.approx(expected.open_share)


def test_text_that_is_unlike_stands_out() -> None:
    extended, calibration = calibrated("tokens")
    like = watch(extended, text(200, seed=8), WINDOWS, calibration)
    values = np.array([found.p_value for found in like if found.p_value is not None])
    assert (values <= 0.1).mean() <= 0.2, "about a tenth of text that is like it"
    loud = text(200, seed=9)
    logits = {}
    with torch.no_grad():
        for token in range(3, 64):
            with GateMonitor(extended, calibration) as monitor:
                extended(input_ids=torch.full((1, 30), token))
                logits[token] = monitor.rows()[0].open_share
    openest = max(logits, key=lambda token: logits[token])
    loud.tokens[loud.tokens != END_OF_TEXT] = openest
    found = watch(extended, loud, WINDOWS, calibration)
    assert len(unlike(found, 0.1)) > 100


def test_without_thresholds_there_is_nothing_to_hold_text_against() -> None:
    _, calibration = calibrated("tokens")
    with pytest.raises(UserError, match="no thresholds"):
        GateMonitor(model(gate_reads="tokens"), calibration)
