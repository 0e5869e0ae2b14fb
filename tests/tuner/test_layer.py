"""The short path through a layer is the plain one: skipped tokens, and requests for different
adapters in one batch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from neutral_residues import UserError
from neutral_residues.tuner.layer import (
    NeutralResiduesLayer,
    no_skipping,
    observe_residues,
    residue_layers,
)
from neutral_residues.tuner.routing import BACKBONE
from neutral_residues.tuner.skipping import DENSE_SHARE, GATHER_FROM, active_token_indices
from tiny_llama import (
    extended_llama,
    logits,
    outputs,
    set_gates,
    tiny_llama,
    token_ids,
    two_adapters,
)


@contextmanager
def computed_tokens(model: nn.Module) -> Iterator[list[int]]:
    """For each call of an adapter, how many tokens it was computed for."""
    seen: list[int] = []
    handles = [
        layer.adapter(name).register_forward_hook(
            lambda module, args, residue: seen.append(residue.delta.shape[:-1].numel())
        )
        for layer in residue_layers(model).values()
        for name in layer.known_adapters()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("open_share", [0.0, 0.3, 1.0])
def test_skipping_changes_nothing(open_share: float) -> None:
    model = extended_llama()
    set_gates(model, open_share)
    with no_skipping(model), computed_tokens(model) as in_full:
        expected = outputs(model)
    with computed_tokens(model) as computed:
        found = outputs(model)
    assert in_full == [256, 256]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    if open_share == 0.3:
        assert all(256 * 0.2 < n < 256 * 0.4 for n in computed)
    else:  # nothing is gathered: the same numbers to the last bit
        assert computed == [256, 256] * int(open_share)
        assert torch.equal(found, expected)


def test_shut_gates_give_the_backbone_bit_by_bit() -> None:
    model = extended_llama()
    set_gates(model, 0.0)
    assert torch.equal(outputs(model), outputs(tiny_llama()))


@pytest.mark.parametrize("rows", [1, 3])
def test_generations_are_the_same_token_by_token(rows: int) -> None:
    model = extended_llama()
    set_gates(model, 0.3)
    settings = {
        "max_new_tokens": 24,
        "min_new_tokens": 24,
        "do_sample": False,
        "attention_mask": torch.ones(rows, 32, dtype=torch.long),
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with no_skipping(model), computed_tokens(model) as in_full:
        expected = model.generate(input_ids=token_ids(8, 32)[:rows], **settings)
    with computed_tokens(model) as computed:
        found = model.generate(input_ids=token_ids(8, 32)[:rows], **settings)
    assert sum(computed) < 0.8 * sum(in_full)
    assert torch.equal(found.sequences, expected.sequences)
    for step, (a, b) in enumerate(zip(found.logits, expected.logits, strict=True)):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6, msg=f"token {step}")


@pytest.mark.parametrize(
    "settings", [{"block_gate": "sigmoid"}, {"block_gate": "elu"}, {"block_gate": "none"}]
)
def test_only_a_gate_that_can_be_zero_is_skipped(settings: dict[str, Any]) -> None:
    model = extended_llama(**settings)
    with computed_tokens(model) as computed:
        outputs(model)
    assert computed == [256, 256]


def test_no_token_is_skipped_in_training_for_a_hook_or_compiled() -> None:
    model = extended_llama()
    set_gates(model, 0.0)
    with computed_tokens(model) as computed:
        model(input_ids=token_ids())
    assert computed == [24, 24]

    class Hook:
        def on_residue(self, layer: NeutralResiduesLayer, residue: Any) -> None:
            assert residue.delta.shape[:2] == (2, 12)

    with computed_tokens(model) as computed, observe_residues(residue_layers(model), Hook()):
        logits(model)
    assert computed == [24, 24]
    with computed_tokens(model) as computed:
        logits(torch.compile(model, fullgraph=True, backend="eager"))
    assert computed == [24, 24]


def test_a_gate_that_is_not_a_number_is_seen() -> None:
    model = extended_llama()
    layer = next(iter(residue_layers(model).values()))
    with torch.no_grad():
        layer.adapter("default").block_gate.bias.fill_(torch.nan)
    assert outputs(model).isnan().all()


def test_where_most_gates_are_open_nothing_is_gathered() -> None:
    logits_N1 = -torch.ones(2 * GATHER_FROM, 1)
    most, half = int(2 * GATHER_FROM * DENSE_SHARE) + 1, GATHER_FROM
    logits_N1[:half] = 1
    assert active_token_indices(logits_N1, None).tolist() == list(range(half))
    assert active_token_indices(logits_N1, torch.arange(2 * GATHER_FROM) + 7).tolist() == [
        7 + n for n in range(half)
    ]
    logits_N1[:most] = 1
    assert active_token_indices(logits_N1, None) is None


# ---- requests ----


def test_each_row_gets_what_it_asks_for() -> None:
    model = two_adapters()
    names = ["french", BACKBONE, "german", "german", BACKBONE, "french", "french", "german"]
    alone = {BACKBONE: outputs(tiny_llama())}
    for name in ("french", "german"):
        model.set_adapter(name)
        alone[name] = outputs(model)
    found = outputs(model, adapter_names=names)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone[name][row], atol=1e-5, rtol=1e-5)
    assert torch.equal(outputs(model, adapter_names=[BACKBONE] * 8), alone[BACKBONE])
    assert torch.equal(outputs(model), alone["german"])  # and afterwards as before


def test_generation_with_beams_and_a_name_for_each_row() -> None:
    model = two_adapters()
    ids, ones = token_ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": 2}
    mixed = model.generate(
        input_ids=ids, attention_mask=ones, adapter_names=["german", BACKBONE, "french"], **settings
    )
    model.set_adapter("german")
    german = model.generate(input_ids=ids[:1], attention_mask=ones[:1], **settings)
    model.set_adapter("french")
    french = model.generate(input_ids=ids[2:], attention_mask=ones[:1], **settings)
    with model.disable_adapter():
        backbone = model.generate(input_ids=ids[1:2], attention_mask=ones[:1], **settings)
    assert torch.equal(mixed, torch.cat([german, backbone, french]))


def test_requests_compile_as_one_graph() -> None:
    model = two_adapters()
    names = ["french", BACKBONE] * 4
    with torch.no_grad():
        found = torch.compile(model, fullgraph=False, backend="aot_eager")(
            input_ids=token_ids(8, 32), adapter_names=names
        ).logits
    torch.testing.assert_close(found, outputs(model, adapter_names=names), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["french"],
            (
                "adapter_names; got 1 names for 8 rows; allowed: a list with one name for each row"
                " of the batch"
            ),
        ),
        ("french", "adapter_names; got 'french'"),
        (
            ["frensh"] * 8,
            "not loaded; got frensh; allowed: french, german, or __base__ for none; did you mean",
        ),
    ],
)
def test_a_wrong_list_of_names(names: Any, problem: str) -> None:
    with pytest.raises(UserError) as raised:
        outputs(two_adapters(), adapter_names=names)
    assert problem in str(raised.value)


def test_requests_are_for_inference() -> None:
    model = two_adapters().train()
    with pytest.raises(UserError, match="is for inference"):
        outputs(model, adapter_names=["french"] * 8)
