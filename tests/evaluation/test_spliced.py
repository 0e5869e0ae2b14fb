"""Spliced text: against a loop over tokens, and gates counted by hand."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import nn

from neutral_residues import NeutralResiduesConfig, residue_layers
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.spliced import measure_spliced
from neutral_residues.evaluation.sums import ResidueStats
from neutral_residues.results.spliced import AfterSwitch, Spliced
from neutral_residues.tuner.layer import observe_residues
from tiny_llama import extended_llama, tiny_llama

T, WINDOWS = 48, 6


def streams() -> list[TokenStream]:
    """Source tokens are below 32, target tokens are not; three bytes a token."""
    random = np.random.default_rng(0)
    sets = []
    for name, role, first in (("fr", "target", 32), ("en", "source", 0), ("wiki", "source", 0)):
        tokens = (first + random.integers(0, 32, 400)).astype(np.uint16)
        sets.append(TokenStream(name, role, tokens, np.array([400]), np.array([1200])))
    return sets


def measured(model: nn.Module, **settings: Any) -> Spliced:
    common = {"context_tokens": T, "num_windows": WINDOWS}
    found = measure_spliced(model, streams(), **common | settings)
    assert found is not None
    return found


class _Rows:
    """A model that only keeps what it is given."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[torch.Tensor] = []
        model.register_forward_pre_hook(
            lambda _, args, kwargs: self.rows.append(kwargs["input_ids"].clone()), with_kwargs=True
        )


@pytest.mark.parametrize("head_rank", [0, 4])
@torch.no_grad()
def test_against_a_loop_over_tokens(head_rank: int) -> None:
    model, backbone = extended_llama(head_rank=head_rank), tiny_llama()
    kept = _Rows(model)
    found = measured(model)
    windows = kept.rows[::2]  # extended, then backbone
    assert len(windows) == WINDOWS
    nats, since_closed, num_layers = Counter(), defaultdict(list), 2 + (head_rank > 0)
    stats = ResidueStats(residue_layers(model))
    for rows in windows:
        both, role, since, place = rows[2].tolist(), None, 0, {"source": 0, "target": 0}
        stats.start(1, T)
        with observe_residues(stats.layers, stats):
            spliced = model(input_ids=rows[2:]).logits.log_softmax(-1)[0]
        closed = sum(zero[0].int() for zero in stats.gate_zero_BT.values())
        alone = dict(zip(place, model(input_ids=rows[:2]).logits.log_softmax(-1), strict=True))
        plain = backbone(input_ids=rows[2:]).logits.log_softmax(-1)[0]
        for t, token in enumerate(both):
            before, role = role, "source" if token < 32 else "target"
            if role != before:
                since = int(t > 0)
            elif since:  # 0 all through the first segment
                since += 1
            if since:
                since_closed[role].append((since, int(closed[t])))
            if since > 1:
                nats[role, "tokens"] += 1
                nats[role, "spliced"] -= float(spliced[t - 1, token])
                nats[role, "plain"] -= float(plain[t - 1, token])
                nats[role, "alone"] -= float(alone[role][place[role] - 1, token])
            place[role] += 1
    for role, result in (("source", found.source), ("target", found.target)):
        assert result.num_tokens == nats[role, "tokens"] > 20
        assert result.extended_nats == pytest.approx(nats[role, "spliced"], rel=1e-4)
        assert result.backbone_nats == pytest.approx(nats[role, "plain"], rel=1e-4)
        assert result.extended_alone_nats == pytest.approx(nats[role, "alone"], rel=1e-4)
        for gates in result.gates:
            last = gates.last or T
            counts = [n for since, n in since_closed[role] if gates.first <= since <= last]
            assert gates.num_gates == num_layers * len(counts), gates.title
            assert gates.num_closed == sum(counts), gates.title
        assert sum(gates.num_closed for gates in result.gates) > 0


def test_names_sizes_and_titles() -> None:
    found = measured(extended_llama())
    assert (found.num_windows, found.context_tokens) == (WINDOWS, T)
    assert (found.source.name, found.target.name) == ("en", "fr")
    assert found.source.num_bytes == pytest.approx(3 * found.source.num_tokens)
    assert [gates.title for gates in found.source.gates] == ["1", "2-3", "4-7", "8-15", "16-31"]
    again = AfterSwitch.model_validate(found.source.model_dump())
    assert again == found.source
    wrong = found.source.model_dump() | {"rise_percent": 1.0}
    with pytest.raises(ValueError, match=r"rise_percent is 1\.0, but the sums give"):
        AfterSwitch.model_validate(wrong)


def test_a_new_extension_costs_nothing_and_a_model_without_gates_has_none() -> None:
    found = measured(get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8)))
    for result in (found.source, found.target):
        assert result.rise_percent == result.alone_rise_percent == 0
    assert measured(tiny_llama(), reference=tiny_llama()).source.gates == []


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"num_windows": 0}, slice(None)),
        ({"context_tokens": 15}, slice(None)),
        ({"context_tokens": 401}, slice(None)),
        ({}, slice(1, None)),
        ({}, slice(0)),
    ],
)
def test_what_cannot_be_spliced_is_not_measured(settings: dict[str, int], kept: slice) -> None:
    common = {"context_tokens": T, "num_windows": WINDOWS}
    assert measure_spliced(extended_llama(), streams()[kept], **common | settings) is None
