"""Tokens that open gates are looked for; a text helps where random tokens open none."""

from pathlib import Path

import pytest
import torch

from neutral_residues.errors import UserError
from neutral_residues.export.export import export_model
from neutral_residues.export.reference import record_reference
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.layer import no_skipping
from tiny_export import NEW_TOKENS, extended
from tiny_llama import extended_llama


@pytest.mark.parametrize("name", ["model.layers.1.mlp", "lm_head"])
def test_tokens_with_open_gates_are_looked_for(name: str) -> None:
    model = extended_llama(adapter_name="french", gate_reads="layer")
    gate = model.get_base_model().get_submodule(name).adapter("french").block_gate
    rows, found = torch.randint(64, (400, 32), generator=torch.Generator().manual_seed(5)), []
    with torch.no_grad(), no_skipping(model):
        gate.bias.zero_()
        hook = gate.register_forward_hook(lambda *args: found.append(args[-1]))
        model(input_ids=rows)
        hook.remove()
        gate.bias.fill_(-found[0].view(400, 32).amax(dim=1).quantile(39 / 40))
    reference = record_reference(model)
    assert reference.num_inactive == 0
    assert 2 <= len(reference.token_ids_BT) <= 4
    with torch.no_grad():
        gate.bias.fill_(-1e6)
    assert record_reference(model).num_inactive == 1


@torch.no_grad()
def test_where_random_tokens_open_no_gate_a_text_does(tmp_path: Path) -> None:
    """A gate that opens after two alternating tokens, and nowhere else."""
    model = extended_llama(layers_to_transform=[0], head_rank=0, gate_reads="layer")
    text_ids = [42, 7] * 20
    gate = model.base_model.model.model.layers[0].mlp.adapter("default").block_gate
    gate.bias.fill_(100.0)
    x_D = record_reference(model, text_ids).inputs["model.layers.0.mlp"][0, -1]
    gate.weight.copy_(x_D[None])
    gate.bias.fill_(-0.9999 * x_D.square().sum())
    line = r"every gate was closed .*; give target text of 32 tokens or more"
    with pytest.raises(UserError, match=line):
        export_model(model, tmp_path / "out", to="transformers")
    reference = record_reference(model, text_ids)
    assert reference.num_inactive == 0
    assert (reference.token_ids_BT == torch.tensor(text_ids[:32])).all(dim=1).any()


@pytest.mark.parametrize(
    ("name", "weight"), [("model.layers.1.mlp", "down_proj.weight"), ("lm_head", "weight")]
)
def test_the_residues_are_what_the_adapters_add(name: str, weight: str) -> None:
    """With the output of the block or head itself set to 0, what the layer returns is the
    residue."""
    model = extended_llama()
    layer = model.get_base_model().get_submodule(name)
    with torch.no_grad():
        layer.base_layer.get_parameter(weight).zero_()
    reference = record_reference(model)
    with torch.no_grad(), no_skipping(model):
        found = layer(reference.inputs[name])
    torch.testing.assert_close(found, reference.residues[name])


@pytest.mark.parametrize("block_gate", ["relu", "sigmoid", "none"])
def test_new_tokens_stand_behind_open_gates_and_behind_shut_ones(block_gate: str) -> None:
    reference = record_reference(extended(**NEW_TOKENS | {"block_gate": block_gate}))
    is_new = reference.token_ids_BT[:, 1:] >= 64
    is_open = reference.logits_BTV[:, :-1, 64:].isfinite().all(-1)
    assert (is_new & is_open).any()
    assert (is_new & ~is_open).any() == (block_gate == "relu")
    assert (~is_new).any()
    assert len(reference.token_ids_BT) <= 4


def test_a_gate_that_is_open_wherever_it_can_be_is_counted() -> None:
    model = extended(**NEW_TOKENS)
    assert record_reference(model).impossible[0] > 0
    with torch.no_grad():
        for reader in embeddings_layer(model).readers().values():
            reader.block_gate.bias.fill_(100.0)
    reference = record_reference(model)
    assert reference.impossible == (len(reference.token_ids_BT), 64)  # the first of each text
    assert record_reference(extended()).impossible is None
