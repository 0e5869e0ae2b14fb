"""Spliced text: against a loop over tokens, and gates counted by hand."""

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain
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
from tiny_llama import NUM_NEW_TOKENS, V, extended_llama, llama_with_tokens, tiny_llama

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


MODELS = {
    "layers": lambda: extended_llama(head_rank=0),
    "layers and head": lambda: extended_llama(head_rank=4),
    "new tokens": llama_with_tokens,
}
PIECES = [[32 + i, 50 - i, 40][: 2 + i % 2] for i in range(NUM_NEW_TOKENS)]


def with_new_tokens(stream: TokenStream) -> TokenStream:
    """Where it is target text, every third token."""
    places = np.arange(stream.num_tokens)
    is_new = (places % 3 == 0) & (stream.role == "target")
    return replace(stream, tokens=np.where(is_new, V + places % NUM_NEW_TOKENS, stream.tokens))


def held(row: torch.Tensor) -> list[list[int]]:
    """Of each token in the extended model's row: the backbone's that it stands for."""
    return [PIECES[token - V] if token >= V else [token] for token in row.tolist()]


def at_first(row: torch.Tensor, logits: torch.Tensor) -> list[float]:
    """Log probability of each token, then zeros for the others of the backbone's that it holds."""
    found, scores = [0.0], logits.log_softmax(-1)
    for t, pieces in enumerate(held(row)):
        found += [float(scores[t - 1, row[t]])] * (t > 0) + [0.0] * (len(pieces) - 1)
    return found


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_against_a_loop_over_tokens(kind: str) -> None:
    model, backbone = MODELS[kind](), tiny_llama()
    pieces = PIECES if kind == "new tokens" else ()
    texts = [with_new_tokens(s) if pieces else s for s in streams()]
    kept = _Rows(model)
    size = {"context_tokens": T, "num_windows": WINDOWS}
    found = measure_spliced(model, texts, **size, pieces=pieces)
    assert found is not None
    reads = [kept.rows[i : i + 4] for i in range(0, len(kept.rows), 4)]
    assert len(reads) == WINDOWS
    nats, since_closed, num_new = Counter(), defaultdict(list), 0
    stats = ResidueStats(residue_layers(model))
    for own_parts, own, parts, plain in reads:
        # What the spliced text holds of each block, and the same in both models' tokens; what is
        # behind it is padding.
        olds = [plain[0][plain[0] < 32], plain[0][plain[0] >= 32], plain[0]]
        rows = []
        for row, old in zip([*own_parts, *own], olds, strict=True):
            ends = np.cumsum([len(it) for it in held(row)])
            rows.append(row[: int(np.flatnonzero(ends == len(old))[0]) + 1])
            assert [*chain(*held(rows[-1]))] == old.tolist()
        for part, old in zip(parts, olds[:2], strict=True):
            assert part[: len(old)].tolist() == old.tolist()
        stats.start(1, len(rows[2]))
        with observe_residues(stats.layers, stats):
            spliced = at_first(rows[2], model(input_ids=rows[2][None]).logits[0])
        closed = sum(zero[0].int() for zero in stats.gate_zero_BT.values())
        alone = [at_first(row, model(input_ids=row[None]).logits[0]) for row in rows[:2]]
        of_backbone = backbone(input_ids=plain).logits.log_softmax(-1)[0]
        role, since, t, place = None, 0, -1, [0, 0]
        for number, tokens in enumerate(held(rows[2])):
            for token in tokens:
                t, before, role = t + 1, role, int(token >= 32)
                if role != before:
                    since = int(t > 0)
                    assert t == 0 or len(tokens) == 1  # the first after a switch stands alone
                elif since:  # 0 all through the first segment
                    since += 1
                if since > 1:
                    nats[role, "tokens"] += 1
                    nats[role, "spliced"] -= spliced[t]
                    nats[role, "plain"] -= float(of_backbone[t - 1, token])
                    nats[role, "alone"] -= alone[role][place[role]]
                place[role] += 1
            if since:
                since_closed[role].append((since, int(closed[number])))
            num_new += len(tokens) > 1
    assert (num_new >= WINDOWS) == bool(pieces)
    num_layers = len(stats.layers)
    for role, result in enumerate((found.source, found.target)):
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


def test_progress_is_shown_window_by_window() -> None:
    shown: list[tuple[str, int, int]] = []
    measured(extended_llama(), num_windows=2, on_progress=lambda *now: shown.append(now))
    assert shown == [("en and fr in turns", 1, 2), ("en and fr in turns", 2, 2)]
