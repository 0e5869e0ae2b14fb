"""The formula against values worked out by hand, and the sizes and variances that the method
promises."""

import math

import pytest
import torch
from torch import nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.neutral import (
    GATES,
    GateChoice,
    GatedAdapter,
    Residue,
    num_weights,
    width_for_budget,
)

# D = 2, R = 2. At x = (2, 1): W_g x = (2, -1), relu -> (2, 0);  W_i x = (3, 5);  product (6, 0);
# W_o -> (6, 12);  w.x = 2 - 1.5 = 0.5
W_G = [[1.0, 0.0], [0.0, -1.0]]
W_I = [[1.0, 1.0], [2.0, 1.0]]
W_O = [[1.0, 7.0], [2.0, 7.0]]
W = [[1.0, -1.5]]


@torch.no_grad()
def by_hand(x: list[float], kind: str) -> Residue:
    adapter = GatedAdapter(2, 2, GateChoice(kind, "random"), activation=nn.ReLU())
    for linear, weight in zip(
        (adapter.gate, adapter.up, adapter.down, adapter.block_gate),
        (W_G, W_I, W_O, W),
        strict=True,
    ):
        if linear is not None:
            linear.weight.copy_(torch.tensor(weight))
    return adapter(torch.tensor(x))


def fresh(width_in: int = 16, width: int = 8, *, num_layers: int = 2, **choices) -> GatedAdapter:
    init = choices.pop("init", "usual")
    torch.manual_seed(0)
    gate = GateChoice(choices.get("kind", "relu"), choices.get("gate_start", "open"))
    adapter = GatedAdapter(width_in, width, gate, activation=nn.SiLU())
    adapter.reset_parameters(num_layers=num_layers, init=init)
    return adapter


def test_the_formula_where_the_gate_is_open() -> None:
    result = by_hand([2.0, 1.0], "relu")
    assert result.gate_logits.tolist() == [0.5]
    assert result.gate.tolist() == [0.5]
    assert result.delta.tolist() == [3.0, 6.0]


def test_the_formula_where_the_gate_is_closed() -> None:
    # w.x = 1 - 3 = -2: relu gives exactly 0, and so does the residue.
    result = by_hand([1.0, 2.0], "relu")
    assert result.gate_logits.tolist() == [-2.0]
    assert result.gate.tolist() == [0.0]
    assert result.delta.abs().tolist() == [0.0, 0.0]


def test_the_activation_is_on_the_projection_of_the_gate_side() -> None:
    # At x = (1, -2): W_g x = (1, 2), W_i x = (-1, 0) -> product (-1, 0) -> W_o (-1, -2); w.x = 4.
    # With the activation on the other side it would be (0, 0).
    assert by_hand([1.0, -2.0], "relu").delta.tolist() == [-4.0, -8.0]


def test_without_a_block_gate_the_adapter_is_added_whole() -> None:
    result = by_hand([2.0, 1.0], "none")
    assert result.gate is None
    assert result.gate_logits is None
    assert result.delta.tolist() == [6.0, 12.0]


def test_one_gate_for_each_token() -> None:
    result = by_hand([[[2.0, 1.0], [1.0, 2.0], [1.0, -2.0]]], "relu")  # type: ignore[list-item]
    assert result.gate.shape == (1, 3, 1)
    assert result.gate.flatten().tolist() == [0.5, 0.0, 4.0]
    assert result.delta.shape == (1, 3, 2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("relu", [0.0, 0.0, 2.0]),
        ("elu", [math.exp(-1) - 1, 0.0, 2.0]),
        ("sigmoid", [1 / (1 + math.e), 0.5, 1 / (1 + math.exp(-2))]),
    ],
)
def test_the_gates(kind: str, expected: list[float]) -> None:
    assert GATES[kind](torch.tensor([-1.0, 0.0, 2.0])).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("init", "variance"), [("paper", 1 / (256 * 8)), ("usual", 2 / 256)])
def test_the_variance_of_the_inner_projections(init: str, variance: float) -> None:
    adapter = fresh(256, 400, num_layers=8, init=init)
    # 102,400 samples: the relative standard error of a variance is sqrt(2 / n) = 0.44 %.
    for weight in (adapter.gate.weight, adapter.up.weight):
        assert weight.var().item() == pytest.approx(variance, rel=0.02)
        assert weight.mean().item() == pytest.approx(0, abs=5 * math.sqrt(variance / 102_400))


@pytest.mark.parametrize("init", ["paper", "usual"])
@pytest.mark.parametrize("kind", [*GATES, "none"])
def test_the_residue_is_exactly_zero_at_the_start_and_can_learn(init: str, kind: str) -> None:
    adapter = fresh(kind=kind, init=init)
    delta = adapter(torch.randn(2, 16, 16)).delta
    assert not delta.any()
    delta.sum().backward()
    assert adapter.down.weight.grad.any(), "a dead gate would leave W_o at zero for ever"


@pytest.mark.parametrize(
    ("kind", "gate_start"),
    [("relu", "open"), ("relu", "random"), ("sigmoid", "half"), ("none", "open")],
)
def test_num_weights_is_the_real_count(kind: str, gate_start: str) -> None:
    adapter = fresh(kind=kind, gate_start=gate_start)
    real = sum(parameter.numel() for parameter in adapter.parameters())
    assert num_weights(16, 8, GateChoice(kind, gate_start)) == real


@pytest.mark.parametrize(
    ("budget", "backbone", "width_in", "num_adapters", "width"),
    [
        # 0.2 * 10^9 / (16 * 3 * 2048) = 2034.5, rounded to a multiple of 128: 2048 is 0.7 % more.
        (0.20, 1_000_000_000, 2048, 16, 2048),
        # 0.2 * 3,049,920 / (6 * 3 * 192) = 176.5 less the gates: 176 is a multiple of 16; one of 32
        # would be 9 % off.
        (0.20, 3_049_920, 192, 6, 176),
        # 0.0286 * 10^6 / (4 * 3 * 64) = 37.2: 36 and 38 are more than 2 % off.
        (0.0286, 1_000_000, 64, 4, 37),
    ],
)
@pytest.mark.parametrize("kind", ["relu", "none"])
def test_the_width_for_a_budget(
    budget: float, backbone: int, width_in: int, num_adapters: int, width: int, kind: str
) -> None:
    found = width_for_budget(
        budget,
        num_backbone_weights=backbone,
        width_in=width_in,
        num_adapters=num_adapters,
        gate=GateChoice(kind),
    )
    assert found == width


@pytest.mark.parametrize("budget", [0.005, 0.03, 0.1, 0.2, 0.37, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("backbone", "width_in", "num_adapters"), [(3_049_920, 192, 6), (1.24e9, 2048, 16)]
)
def test_the_true_share_is_within_two_per_cent(
    budget: float, backbone: float, width_in: int, num_adapters: int
) -> None:
    width = width_for_budget(
        budget,
        num_backbone_weights=int(backbone),
        width_in=width_in,
        num_adapters=num_adapters,
        gate=GateChoice(),
    )
    share = num_adapters * num_weights(width_in, width, GateChoice()) / backbone
    assert share == pytest.approx(budget, rel=0.02)


def test_a_budget_that_no_width_meets_is_refused_with_the_nearest() -> None:
    # One weight of width costs 2 * 3 * 100 = 600 in 10,000: 6 %. 8 % is between 6 % and 12 %.
    size = {"num_backbone_weights": 10_000, "width_in": 100, "num_adapters": 2}
    size["gate"] = GateChoice("none")
    with pytest.raises(
        UserError, match=r"got 0.08; the nearest is 0.06000 \(width 1\); set that, or set width"
    ):
        width_for_budget(0.08, **size)
    assert width_for_budget(0.06, **size) == 1


def test_an_open_gate_starts_at_one_on_every_token() -> None:
    assert torch.equal(fresh()(torch.randn(50, 16)).gate, torch.ones(50, 1))


def test_a_gate_that_starts_at_random_has_no_bias_and_leaves_out_half() -> None:
    adapter = fresh(64, gate_start="random")
    assert adapter.block_gate.bias is None
    gate = adapter(torch.randn(4000, 64)).gate
    assert 0.4 < float((gate == 0).float().mean()) < 0.6


def test_a_gate_that_starts_half_open_has_no_bias_and_learns() -> None:
    adapter = fresh(kind="sigmoid", gate_start="half")
    residue = adapter(torch.randn(50, 16))
    assert torch.equal(residue.gate, torch.full((50, 1), 0.5))
    assert adapter.block_gate.bias is None
    residue.delta.sum().backward()
    assert adapter.down.weight.grad.any()
