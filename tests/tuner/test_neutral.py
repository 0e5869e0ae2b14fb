"""The formula against values worked out by hand, and the sizes and variances that the method
promises."""

import math

import pytest
import torch
from torch import nn

from neutral_residues.errors import UserError
from neutral_residues.tuner.config import NeutralResiduesConfig
from neutral_residues.tuner.neutral import (
    BLOCK_GATES,
    Residue,
    block_gate,
    initialise,
    new_projections,
    num_weights,
    residue,
    width_for_budget,
)


def linear(*rows: list[float], bias: bool = False) -> nn.Linear:
    """A linear layer whose weight has these rows."""
    weight = torch.tensor(rows)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    layer.weight.data = weight
    return layer


# D = 2, R = 2. At x = (2, 1): W_g x = (2, -1), relu -> (2, 0);  W_i x = (3, 5);  product (6, 0);
# W_o -> (6, 12);  w.x = 2 - 1.5 = 0.5
W_G = [[1.0, 0.0], [0.0, -1.0]]
W_I = [[1.0, 1.0], [2.0, 1.0]]
W_O = [[1.0, 7.0], [2.0, 7.0]]
W = [[1.0, -1.5]]


def by_hand(x: list[float], kind: str, *, w: list[list[float]] | None = W) -> Residue:
    return residue(
        torch.tensor(x),
        w_g=linear(*W_G),
        w_i=linear(*W_I),
        w_o=linear(*W_O),
        w=None if w is None else linear(*w),
        activation=nn.ReLU(),
        gate_kind=kind,
    )


def test_the_formula_where_the_gate_is_open() -> None:
    result = by_hand([2.0, 1.0], "relu")
    assert result.gate_logits.tolist() == [0.5]
    assert result.gate.tolist() == [0.5]
    assert result.delta.tolist() == [3.0, 6.0]


def test_the_formula_where_the_gate_is_shut() -> None:
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
    result = by_hand([2.0, 1.0], "none", w=None)
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
    assert block_gate(torch.tensor([-1.0, 0.0, 2.0]), kind).tolist() == pytest.approx(expected)  # type: ignore[arg-type]


def test_an_unknown_gate_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"tanh.*relu, elu, sigmoid, none"):
        block_gate(torch.zeros(1), "tanh")  # type: ignore[arg-type]


def adapter(width_in: int, width: int, *, gated: bool = True) -> dict[str, nn.Linear | None]:
    return new_projections(width_in=width_in, width=width, gated=gated)._asdict()


@pytest.mark.parametrize(("init", "variance"), [("paper", 1 / (256 * 8)), ("usual", 2 / 256)])
def test_the_variance_of_the_inner_projections(init: str, variance: float) -> None:
    torch.manual_seed(0)
    weights = adapter(256, 400)
    initialise(**weights, num_layers=8, init=init)  # type: ignore[arg-type]
    # 102,400 samples: the relative standard error of a variance is sqrt(2 / n) = 0.44 %.
    for name in ("w_g", "w_i"):
        assert weights[name].weight.var().item() == pytest.approx(variance, rel=0.02)
        assert weights[name].weight.mean().item() == pytest.approx(
            0, abs=5 * math.sqrt(variance / 102_400)
        )


@pytest.mark.parametrize("init", ["paper", "usual"])
@pytest.mark.parametrize("kind", BLOCK_GATES)
def test_the_residue_is_exactly_zero_at_the_start_and_can_learn(init: str, kind: str) -> None:
    torch.manual_seed(0)
    weights = adapter(16, 8, gated=kind != "none")
    initialise(**weights, num_layers=2, init=init)  # type: ignore[arg-type]
    x_BTD = torch.randn(2, 16, 16)
    result = residue(x_BTD, **weights, activation=nn.SiLU(), gate_kind=kind)  # type: ignore[arg-type]
    assert not result.delta.any()
    result.delta.sum().backward()
    assert weights["w_o"].weight.grad.any(), "a dead gate would leave W_o at zero for ever"


def test_an_unknown_init_is_refused() -> None:
    with pytest.raises(UserError, match="init; got large; allowed: paper, usual"):
        initialise(**adapter(4, 4), num_layers=1, init="large")  # type: ignore[arg-type]


@pytest.mark.parametrize("gated", [True, False])
def test_num_weights_is_the_real_count(gated: bool) -> None:
    layers = [
        layer for layer in new_projections(width_in=16, width=8, gated=gated) if layer is not None
    ]
    real = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    assert len(layers) == (4 if gated else 3)
    assert num_weights(width_in=16, width=8, gated=gated) == real


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
@pytest.mark.parametrize("gated", [True, False])
def test_the_width_for_a_budget(
    budget: float, backbone: int, width_in: int, num_adapters: int, width: int, gated: bool
) -> None:
    found = width_for_budget(
        budget,
        num_backbone_weights=backbone,
        width_in=width_in,
        num_adapters=num_adapters,
        gated=gated,
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
        gated=True,
    )
    share = num_adapters * num_weights(width_in=width_in, width=width, gated=True) / backbone
    assert share == pytest.approx(budget, rel=0.02)


def test_a_budget_that_no_width_meets_is_refused_with_the_nearest() -> None:
    # One weight of width costs 2 * 3 * 100 = 600 in 10,000: 6 %. 8 % is between 6 % and 12 %.
    with pytest.raises(
        UserError, match=r"got 0.08; the nearest is 0.06000 \(width 1\); set that, or set width"
    ):
        width_for_budget(
            0.08, num_backbone_weights=10_000, width_in=100, num_adapters=2, gated=False
        )
    assert (
        width_for_budget(
            0.06, num_backbone_weights=10_000, width_in=100, num_adapters=2, gated=False
        )
        == 1
    )


@pytest.mark.parametrize("budget", [0.0, -0.2, float("nan")])
def test_a_budget_that_is_not_positive_is_refused(budget: float) -> None:
    with pytest.raises(UserError, match=r"budget; got .*; allowed: a share above 0"):
        width_for_budget(
            budget, num_backbone_weights=10_000, width_in=100, num_adapters=2, gated=False
        )


def test_an_open_gate_starts_at_one_on_every_token() -> None:
    weights = new_projections(width_in=16, width=8, gated=True)
    initialise(**weights._asdict(), num_layers=2, init="usual")
    x = torch.randn(50, 16)
    gate = residue(x, **weights._asdict(), activation=nn.SiLU(), gate_kind="relu").gate
    assert torch.equal(gate, torch.ones(50, 1))


def test_a_gate_that_starts_at_random_has_no_bias_and_shuts_out_half() -> None:
    torch.manual_seed(0)
    weights = new_projections(width_in=64, width=8, gated=True, gate_start="random")
    initialise(**weights._asdict(), num_layers=2, init="usual", gate_start="random")
    assert weights.w.bias is None
    gate = residue(
        torch.randn(4000, 64), **weights._asdict(), activation=nn.SiLU(), gate_kind="relu"
    ).gate
    assert 0.4 < float((gate == 0).float().mean()) < 0.6


def test_a_gate_that_starts_half_open_has_no_bias_and_learns() -> None:
    weights = new_projections(width_in=16, width=8, gated=True, gate_start="half")
    initialise(**weights._asdict(), num_layers=2, init="usual", gate_start="half")
    x = torch.randn(50, 16)
    result = residue(x, **weights._asdict(), activation=nn.SiLU(), gate_kind="sigmoid")
    assert torch.equal(result.gate, torch.full((50, 1), 0.5))
    assert weights.w.bias is None
    assert num_weights(width_in=16, width=8, gated=True, gate_start="half") == 3 * 16 * 8 + 16
    result.delta.sum().backward()
    assert weights.w_o.weight.grad.any()


@pytest.mark.parametrize("gate", ["relu", "elu", "none"])
def test_only_a_sigmoid_gate_starts_half_open(gate: str) -> None:
    with pytest.raises(UserError, match="gate_start: half needs block_gate: sigmoid"):
        NeutralResiduesConfig(block_gate=gate, gate_start="half")  # type: ignore[arg-type]
