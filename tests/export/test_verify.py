"""The fresh process notices a wrong export, and one that needs this package; and the tolerance."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from neutral_residues.errors import UserError
from neutral_residues.export.formats.table import find_format
from neutral_residues.export.parts import extract_parts
from neutral_residues.export.reference import ReferenceOutputs, record_reference
from neutral_residues.export.verify import Difference, compare
from neutral_residues.export.verify_child import compare_logits, largest_difference
from tiny_export import MIXTURE, NEW_TOKENS, SIGMOID, extended


def written(to: str, folder: Path) -> ReferenceOutputs:
    model = extended(**MIXTURE if to == "qwen2_moe" else SIGMOID)
    reference = record_reference(model)
    find_format(to).write(extract_parts(model), folder, torch.float32)
    return reference


def damage(folder: Path, tensor: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor].neg_()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_residues_alone(tmp_path: Path) -> None:
    """That an exact export passes is seen by the tests of the command."""
    reference = written("safetensors", tmp_path)
    damage(tmp_path, "layers.1.block_gate.weight")
    difference = compare(tmp_path, reference, kind="residues", trust_remote_code=False)
    assert (difference.cache, difference.num_inactive) == (0, 0)
    line = r"the export is not the live model; got residues up to \d"
    with pytest.raises(UserError, match=line):
        difference.check(rounded=False)
    code = tmp_path / "reference.py"
    code.write_text(f"import neutral_residues\n{code.read_text()}")
    with pytest.raises(UserError, match=r"cannot be loaded in a fresh process.*neutral_residues"):
        compare(tmp_path, reference, kind="residues", trust_remote_code=False)


@pytest.mark.slow
def test_a_whole_model(tmp_path: Path) -> None:
    reference = written("qwen2_moe", tmp_path)
    compare(tmp_path, reference, kind="logits", trust_remote_code=False).check(rounded=False)
    damage(tmp_path, "model.layers.1.mlp.shared_expert_gate.weight")
    difference = compare(tmp_path, reference, kind="logits", trust_remote_code=False)
    with pytest.raises(UserError, match=r"got logits up to 0\.\d+"):
        difference.check(rounded=False)


def test_new_tokens_that_are_possible_elsewhere_are_noticed(tmp_path: Path) -> None:
    model = extended(**NEW_TOKENS)
    reference = record_reference(model)
    find_format("transformers").write(extract_parts(model), tmp_path, torch.float32)
    tensors = {"token_ids": reference.token_ids_BT, "logits": reference.logits_BTV.clone()}
    is_open = tensors["logits"][..., -1].isfinite()
    tensors["logits"][tuple(is_open.nonzero()[0])][-1] = -torch.inf
    answer = compare_logits(tmp_path, tensors, trust_remote_code=True)
    assert answer["outputs"] == torch.inf
    with pytest.raises(UserError, match="the export is not the live model; got logits up to inf"):
        Difference("logits", **answer, num_inactive=0).check(rounded=True)


@pytest.mark.parametrize(("possible", "far"), [(-torch.inf, 0.0), (-99.0, torch.inf)])
def test_minus_infinity_equals_itself_alone(possible: float, far: float) -> None:
    expected, found = torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, possible])
    assert largest_difference(found, expected) == far
    assert largest_difference(expected, found) == far
    assert math.isnan(largest_difference(torch.tensor([1.0, torch.nan]), expected))


@pytest.mark.parametrize(
    ("share", "rounded", "fine"), [(9e-5, False, True), (2e-4, False, False), (2e-4, True, True)]
)
def test_the_tolerance(share: float, rounded: bool, fine: bool) -> None:
    difference = Difference("logits", outputs=0.0, cache=20 * share, largest=20.0, num_inactive=0)
    if fine:
        difference.check(rounded=rounded)
    else:
        with pytest.raises(UserError, match="the export is not the live model"):
            difference.check(rounded=rounded)


def test_what_was_not_compared_is_said() -> None:
    difference = Difference("logits", outputs=0.0, cache=0.0, largest=1.0, num_inactive=2)
    assert "in 2 layers (the output head is one) every gate was closed" in difference.describe()


def test_where_new_tokens_are_impossible_is_said() -> None:
    equal = partial(Difference, "logits", outputs=0.0, cache=0.0, largest=1.0, num_inactive=0)
    line = "new tokens are impossible after the same 3 of 64 tokens"
    assert line in equal(impossible=(3, 64)).describe()
    assert "no gate was closed, so -inf is not compared" in equal(impossible=(0, 64)).describe()


def test_a_comparison_of_zeros_alone_proves_nothing() -> None:
    with pytest.raises(UserError, match="not the live model"):
        Difference("residues", outputs=0.0, cache=0.0, largest=0.0, num_inactive=2).check(
            rounded=False
        )
