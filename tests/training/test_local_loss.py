"""The local loss in a loop of one's own: always against one big batch, written by hand in
`distributed_worker.py`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import CheckpointError, checkpoint

from distributed_worker import (
    ALPHA,
    IGNORE,
    SOURCE,
    TARGET,
    as_batch,
    big_batch_losses,
    extended_llama,
    llama,
    mixed_rows,
    trained,
)
from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.losses import beginnings_loss_sums, counted_tokens
from neutral_residues.training.local_loss import local_loss
from neutral_residues.tuner.layer import observe_residues

# Transformers 5.23 renames what TRL and our oldest Transformers call by its old name.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:.gradient_checkpointing\w*. is deprecated:FutureWarning"
)

Rows = list[dict[str, Any]]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in trained(model).items()}
    model.zero_grad()
    return found


def assert_same_gradients(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def forward_loss(model: nn.Module, rows: Rows) -> Tensor:
    ids, mask, _ = as_batch(rows)
    labels = ids.masked_fill(mask == 0, IGNORE)
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss


def expected_gradients(rows: Rows) -> dict[str, Tensor]:
    model = extended_llama()
    nats, local = big_batch_losses(model, rows)
    (nats + ALPHA * local).backward()
    return gradients(model)


def checkpointed(model: nn.Module, use_reentrant: bool = False) -> nn.Module:
    model.train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
def test_own_loop(checkpointing: bool) -> None:
    rows = mixed_rows(8)
    model = checkpointed(extended_llama()) if checkpointing else extended_llama()
    with local_loss(model, as_batch(rows)[2]) as local:
        (forward_loss(model, rows) + ALPHA * local.mean()).backward()
    assert_same_gradients(gradients(model), expected_gradients(rows))


def test_adapters_with_labels_of_their_own() -> None:
    rows = mixed_rows(8)
    model, (_, _, labels) = extended_llama(), as_batch(rows)
    model.add_adapter("other", NeutralResiduesConfig(width=8))
    model.base_model.set_adapter(["default", "other"])
    own = {"default": labels, "other": labels.where(labels == IGNORE, SOURCE)}
    found: dict[str, list[Tensor]] = {"default": [], "other": []}

    class Sizes:
        def on_residue(self, layer: Any, residue: Any, output: Tensor, name: str) -> None:
            sizes = residue.relative_size(output).view(labels.shape)
            counts = counted_tokens(own[name])
            begun = beginnings_loss_sums(residue, output, own[name]) / counts.clamp(min=1)
            found[name] += [sizes[own[name] == SOURCE].sum() / counts[0], begun.sum()]

    with observe_residues(residue_layers(model), Sizes()):
        forward_loss(model, rows)
    with local_loss(model, own) as local:
        forward_loss(model, rows)
    expected = sum(term for terms in found.values() for term in terms)
    torch.testing.assert_close(local.mean(), expected)
    assert local.num_gates[TARGET] < local.num_gates[SOURCE]


def test_a_loaded_extension_trains_on_under_checkpointing(tmp_path: Path) -> None:
    rows = mixed_rows(8)
    extended_llama().save_pretrained(tmp_path)
    model = checkpointed(PeftModel.from_pretrained(llama(), str(tmp_path), is_trainable=True))
    with local_loss(model, as_batch(rows)[2]) as local:
        (forward_loss(model, rows) + ALPHA * local.mean()).backward()
    assert_same_gradients(gradients(model), expected_gradients(rows))


def test_own_loop_that_accumulates() -> None:
    rows, model = mixed_rows(8, length=9), extended_llama()
    domains = as_batch(rows)[2]
    for part in (slice(0, 2), slice(2, 8)):
        with local_loss(model, domains[part]) as local:
            share = len(rows[part]) / len(rows)
            (
                share * forward_loss(model, rows[part])
                + ALPHA * local.mean(counted_tokens(domains))
            ).backward()
    assert_same_gradients(gradients(model), expected_gradients(rows))


def test_backward_outside_the_block_fails_loudly_under_checkpointing() -> None:
    rows, model = mixed_rows(8), checkpointed(extended_llama())
    with local_loss(model, as_batch(rows)[2]) as local:
        loss = forward_loss(model, rows) + ALPHA * local.mean()
    with pytest.raises(CheckpointError):
        loss.backward()


def test_raw_reentrant_checkpointing_of_one_layer_raises() -> None:
    rows, model = mixed_rows(8), extended_llama()
    model.enable_input_require_grads()
    layer = next(iter(residue_layers(model).values()))
    forward = layer.forward
    layer.forward = lambda x: checkpoint(forward, x, use_reentrant=True)  # type: ignore[method-assign]
    with local_loss(model, as_batch(rows)[2]) as local:
        loss = forward_loss(model, rows)
        with pytest.raises(UserError, match="reentrant"):
            (loss + ALPHA * local.mean()).backward()


def test_without_gradients_it_measures() -> None:
    rows, model = mixed_rows(8), extended_llama()
    with torch.no_grad(), local_loss(model, as_batch(rows)[2]) as local:
        forward_loss(model, rows)
        assert local.mean().item() == pytest.approx(
            big_batch_losses(model, rows)[1].item(), rel=1e-5
        )


def test_two_adapters_add_up() -> None:
    rows, model = mixed_rows(8), extended_llama()
    model.add_adapter("another", NeutralResiduesConfig(width=4, layers_to_transform=[1]))
    model.base_model.set_adapter(["default", "another"])
    domains = as_batch(rows)[2]
    with torch.no_grad(), local_loss(model, domains) as local:
        forward_loss(model, rows)
        mean = local.mean()
    # The new ones still add zero.
    assert mean.item() == pytest.approx(big_batch_losses(model, rows)[1].item(), rel=1e-5)
    expected = {it: 5 * int((domains == it).sum()) for it in (SOURCE, TARGET)}
    assert {it: int(number) for it, number in local.num_gates.items()} == expected


def test_an_adapter_without_labels_has_no_local_loss() -> None:
    rows, model = mixed_rows(8), extended_llama()
    model.add_adapter("other", NeutralResiduesConfig(width=8))
    model.base_model.set_adapter(["default", "other"])
    labels = as_batch(rows)[2]
    uncounted = torch.full_like(labels, IGNORE)
    means, gates = [], []
    for of in ({"default": labels}, {"default": labels, "other": uncounted}):
        with local_loss(model, of) as local:
            forward_loss(model, rows)
        means.append(local.mean())
        gates.append(local.num_gates)
    torch.testing.assert_close(means[0], means[1])
    assert gates[0] == gates[1]
    with pytest.raises(UserError, match="switched off"):
        local_loss(model, {"nobody": labels}).__enter__()


def test_misuse_is_refused() -> None:
    rows, model = mixed_rows(8), extended_llama()
    domains = as_batch(rows)[2]
    with local_loss(model, domains), pytest.raises(UserError, match="observed already"):
        local_loss(model, domains).__enter__()
    with model.disable_adapter(), pytest.raises(UserError, match="switched off"):
        local_loss(model, domains).__enter__()
    with pytest.raises(UserError, match="no neutral residues"):
        local_loss(llama(), domains).__enter__()
    with pytest.raises(UserError, match="allowed: l1, cross_entropy"):
        local_loss(model, domains, "l2").__enter__()  # type: ignore[arg-type]
    with local_loss(model, domains) as local, pytest.raises(UserError, match="got 0 of 3 residues"):
        local.mean()
    with local_loss(model, domains):
        forward_loss(model, rows)
        with pytest.raises(UserError, match="the model ran twice"):
            forward_loss(model, rows)
    with local_loss(model, domains[:, 1:]), pytest.raises(UserError, match="one each"):
        forward_loss(model, rows)
    assert all(layer.residue_hook is None for layer in residue_layers(model).values())


def test_a_frozen_adapter_is_refused() -> None:
    rows, model = mixed_rows(8), extended_llama().requires_grad_(False)
    with local_loss(model, as_batch(rows)[2]) as local:
        forward_loss(model, rows)
        with pytest.raises(UserError, match="is frozen"):
            local.mean()


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's own
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled(checkpointing: bool) -> None:
    """The same gradients for one batch after another, from one compilation."""
    torch._dynamo.reset()
    model = checkpointed(extended_llama()) if checkpointing else extended_llama()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter)
    frames = []
    for seed in (3, 4, 5):
        rows = mixed_rows(8, length=9, seed=seed)
        with local_loss(compiled, as_batch(rows)[2]) as local:
            (forward_loss(compiled, rows) + ALPHA * local.mean()).backward()
        assert_same_gradients(gradients(model), expected_gradients(rows))
        frames.append(counter.frame_count)
    assert frames[0] == frames[-1] > 0
