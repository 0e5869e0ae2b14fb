"""A model is run as it is or as its backbone, and left as it was."""

from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from neutral_residues.errors import UserError
from neutral_residues.evaluation.inference import as_backbone, inference
from tiny_llama import extended_llama, logits, tiny_llama


def test_the_backbone_is_the_plain_model() -> None:
    model, plain = extended_llama(), tiny_llama()
    before = logits(model)
    assert not torch.equal(before, logits(plain))
    with as_backbone(model) as backbone:
        assert torch.equal(logits(backbone), logits(plain))
    assert torch.equal(logits(model), before)


def test_a_reference_is_the_backbone() -> None:
    model, reference = tiny_llama(), nn.Identity()
    with as_backbone(model, reference) as backbone:
        assert backbone is reference
    with pytest.raises(UserError, match=r"no backbone to compare with.*reference="):
        as_backbone(model).__enter__()


@pytest.mark.parametrize("trains", [False, True])
def test_what_is_trainable_stays_so(trains: bool) -> None:
    model = extended_llama()
    if not trains:
        model.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with as_backbone(model):
        pass
    assert [p.requires_grad for p in model.parameters()] == before
    assert any(before) == trains


def test_inference_is_without_gradients_autocast_and_dropout() -> None:
    model = extended_llama().train()
    model.get_base_model().lm_head.eval()
    before = [module.training for module in model.modules()]
    with torch.autocast("cpu", dtype=torch.bfloat16), inference(model):
        assert not torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)  # of a test before
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_autocast_of_a_trainer_does_not_count(bf16: Accelerator) -> None:
    model, plain = extended_llama(), extended_llama()
    bf16.prepare(model)
    assert not torch.equal(logits(model), logits(plain))
    with inference(model):
        assert torch.equal(logits(model), logits(plain))
        with as_backbone(model):
            assert torch.equal(logits(model), logits(tiny_llama()))
    assert not torch.equal(logits(model), logits(plain))


def test_models_are_restored_after_an_error() -> None:
    model = extended_llama().train()
    before = logits(model)

    def fail() -> None:
        with inference(model), as_backbone(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert model.training
    assert torch.equal(logits(model), before)
