"""The losses against values by hand."""

import math

import pytest
import torch

from neutral_residues import UserError
from neutral_residues.data.labels import IGNORE, SOURCE, TARGET
from neutral_residues.losses import (
    BEGINNINGS_ON_TARGET,
    beginnings_loss_sums,
    counted_tokens,
    kl_nats,
    local_loss_sum,
    next_token_nats,
)
from neutral_residues.tuner.neutral import Residue

# Two rows of two tokens, D = 2.
DELTA = torch.tensor([[[1.0, -3.0], [10.0, 10.0]], [[0.5, 0.0], [7.0, 7.0]]])
# What the block itself puts out: Euclidean norms 5, 1, 2 and 0.
OUTPUT = torch.tensor([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 0.0]]])
LABELS = torch.tensor([[SOURCE, TARGET], [SOURCE, IGNORE]])


def residue(delta: torch.Tensor = DELTA, gate_logits: torch.Tensor | None = None) -> Residue:
    return Residue(delta, None if gate_logits is None else torch.sigmoid(gate_logits), gate_logits)


def test_l1_counts_source_tokens_only_relative_to_what_the_block_puts_out() -> None:
    expected = (1 + 3) / 5 + 0.5 / 2
    assert local_loss_sum(residue(), OUTPUT, LABELS, "l1").item() == pytest.approx(expected)
    assert counted_tokens(LABELS).tolist() == [2, 1]


def test_beginnings_are_closed_on_source_and_open_where_the_gate_is_on_target() -> None:
    begun = torch.tensor([[[0.5], [0.25]], [[0.0], [9.0]]], requires_grad=True)
    ungated = DELTA.clone().requires_grad_()
    gate = torch.tensor([[[1.0], [1.25]], [[1.0], [0.0]]], requires_grad=True)
    of = Residue(DELTA, gate, gate, begun, ungated)
    sums = beginnings_loss_sums(of, OUTPUT, LABELS)
    assert sums.tolist() == pytest.approx([0.5 * 4 / 5, BEGINNINGS_ON_TARGET * (1.25 - 0.25) * 20])
    sums.sum().backward()
    assert begun.grad is not None
    expected = [4 / 5, -BEGINNINGS_ON_TARGET * 20]
    assert begun.grad.flatten().tolist()[:2] == pytest.approx(expected)
    assert begun.grad[1, 1] == 0
    assert gate.grad is None
    assert ungated.grad is None


def test_l1_without_a_source_token_is_zero_with_a_gradient() -> None:
    delta = DELTA.clone().requires_grad_()
    total = local_loss_sum(residue(delta), OUTPUT, torch.full((2, 2), TARGET), "l1")
    total.backward()
    assert total.item() == 0
    assert delta.grad is not None
    assert not delta.grad.any()


def test_l1_does_not_depend_on_the_scale_of_the_model_nor_train_the_block() -> None:
    delta, output = DELTA.clone().requires_grad_(), OUTPUT.clone().requires_grad_()
    size = local_loss_sum(residue(delta), output, LABELS, "l1")
    larger = local_loss_sum(residue(30 * delta), 30 * output, LABELS, "l1")
    assert larger.item() == pytest.approx(size.item())
    size.backward()
    assert delta.grad is not None
    assert output.grad is None


def test_l1_where_the_block_puts_out_nothing_is_the_plain_norm() -> None:
    labels = torch.tensor([[IGNORE, IGNORE], [IGNORE, SOURCE]])
    assert local_loss_sum(residue(), OUTPUT, labels, "l1").item() == 14


def test_gradient_of_l1_at_zero_is_zero() -> None:
    delta = torch.zeros(1, 1, 2, requires_grad=True)
    local_loss_sum(residue(delta), torch.ones(1, 1, 2), torch.tensor([[SOURCE]]), "l1").backward()
    assert delta.grad is not None
    assert delta.grad.tolist() == [[[0.0, 0.0]]]


def test_cross_entropy_wants_the_gate_shut_on_source_and_open_on_target() -> None:
    gate_logits = torch.tensor([[[0.0], [2.0]], [[-1.0], [50.0]]])
    by_hand = math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))
    assert local_loss_sum(
        residue(gate_logits=gate_logits), OUTPUT, LABELS, "cross_entropy"
    ).item() == pytest.approx(by_hand)


def test_cross_entropy_without_a_gate_is_refused() -> None:
    with pytest.raises(UserError, match="needs a block gate"):
        local_loss_sum(residue(), OUTPUT, LABELS, "cross_entropy")


@pytest.mark.parametrize("kind", ["l1", "cross_entropy"])
def test_the_sum_is_float32_whatever_the_model_is(kind: str) -> None:
    narrow = residue(DELTA.bfloat16(), torch.zeros(2, 2, 1, dtype=torch.bfloat16))
    assert local_loss_sum(narrow, OUTPUT.bfloat16(), LABELS, kind).dtype == torch.float32  # type: ignore[arg-type]


def test_labels_may_have_another_shape_but_not_another_number() -> None:
    flat = residue(DELTA.reshape(4, 2))
    assert local_loss_sum(flat, OUTPUT, LABELS, "l1").item() == pytest.approx(1.05)
    with pytest.raises(UserError, match="3 for 4 tokens"):
        local_loss_sum(flat, OUTPUT, torch.tensor([SOURCE] * 3), "l1")


def test_next_token_nats_of_a_uniform_model() -> None:
    ids = torch.tensor([[1, 2, 3, 4]])
    nats = next_token_nats(torch.full((1, 4, 64), 5.0, dtype=torch.bfloat16), ids)
    assert nats.shape == (1, 3)
    assert nats.dtype == torch.float32
    assert nats.tolist() == [pytest.approx([math.log(64)] * 3)]


def test_next_token_nats_looks_at_the_next_token() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 1.0  # after the first token, 2 is e times as likely as any other
    likely, unlikely = math.e / (math.e + 3), 1 / (math.e + 3)
    assert next_token_nats(logits, torch.tensor([[0, 2, 2]]))[0].tolist() == pytest.approx(
        [-math.log(likely), math.log(4)]
    )
    assert next_token_nats(logits, torch.tensor([[2, 1, 2]]))[0, 0].item() == pytest.approx(
        -math.log(unlikely)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_next_token_nats_in_chunks_have_autograds_values_and_gradients(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neutral_residues.losses.LOGITS_PER_CHUNK", 3 * 11)
    logits = (4 * torch.randn(2, 5, 11)).to(dtype)
    logits[0, 2, 7] = -torch.inf  # a new token behind a gate that is shut
    ids, weights = torch.randint(0, 7, (2, 5)), torch.rand(2, 4)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    nats = next_token_nats(ours, ids)
    plain = torch.nn.functional.cross_entropy(
        theirs[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    ).view(2, 4)
    (nats * weights).sum().backward()
    (plain * weights).sum().backward()
    assert torch.equal(nats, plain)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_kl_is_zero_for_equal_probabilities() -> None:
    log_probs = torch.randn(2, 3, 8).log_softmax(-1)
    assert kl_nats(log_probs, log_probs).tolist() == [[0.0] * 3] * 2


def test_kl_by_hand_and_in_its_direction() -> None:
    half, quarter = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    reference_half = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    reference_quarter = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert kl_nats(quarter, half).item() == pytest.approx(reference_half)
    assert kl_nats(half, quarter).item() == pytest.approx(reference_quarter)
