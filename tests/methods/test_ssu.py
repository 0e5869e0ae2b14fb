"""Source-shielded updates: which columns are frozen, and that they stay as they were."""

from pathlib import Path

import pytest
import torch

from families import FAMILIES, build
from neutral_residues import UserError, extend
from neutral_residues.backbone import load_backbone
from neutral_residues.config.run import make_run
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.methods.ssu import freeze_source_columns
from neutral_residues.training.setup import Setup
from tiny_llama import tiny_llama
from tiny_run import method_values, run_values

ROWS = torch.arange(3, 51).view(3, 16)


def test_the_half_of_the_columns_with_the_highest_scores_gets_no_gradient() -> None:
    model = tiny_llama()
    layer, seen = model.model.layers[1].mlp.down_proj, []
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    model(input_ids=ROWS)
    handle.remove()
    scores = [
        layer.weight[:, j].norm() * seen[0][..., j].square().mean()
        for j in range(len(layer.weight[0]))
    ]
    highest = torch.stack(scores).argsort(descending=True)[: len(scores) // 2]
    freeze_source_columns(model, ROWS)
    model(input_ids=ROWS, labels=ROWS).loss.backward()
    frozen = (layer.weight.grad == 0).all(dim=0)
    assert set(frozen.nonzero().flatten().tolist()) == set(highest.tolist())
    for weight in (
        model.get_input_embeddings().weight,
        model.lm_head.weight,
        model.model.norm.weight,
    ):
        assert weight.grad.abs().sum() > 0


def test_gpt2_holds_its_matrices_the_other_way_round() -> None:
    model = build("gpt2", FAMILIES["gpt2"])
    freeze_source_columns(model, ROWS[:, :8])
    model(input_ids=ROWS[:, :8], labels=ROWS[:, :8]).loss.backward()
    weight = model.transformer.h[0].mlp.c_fc.weight
    assert (weight.grad == 0).all(dim=1).sum() == len(weight) // 2


def test_frozen_columns_stay_as_they_were(tmp_path: Path) -> None:
    values = method_values(tmp_path, "ssu", steps=6, learning_rate=0.01)
    extend(make_run(values))
    before = load_backbone(values["model"], dtype=torch.float32)
    whole = load_saved(tmp_path / "ssu").model
    for (name, old), new in zip(before.named_parameters(), whole.parameters(), strict=True):
        frozen = (old == new).all(dim=0).sum() if old.dim() == 2 else 0
        assert frozen == (old.shape[1] // 2 if "layers" in name and old.dim() == 2 else 0), name


def test_it_needs_source_text_and_no_weight_decay(tmp_path: Path) -> None:
    values = run_values(tmp_path, weight_decay=0.1) | {"method": "ssu"}
    with pytest.raises(UserError, match=r"weight_decay is fixed by method ssu; got 0\.1"):
        Setup.of(make_run(values))
    values = run_values(tmp_path) | {"method": "ssu"}
    data = values["data"] | {"source_share": 0, "train": values["data"]["train"][:1]}
    with pytest.raises(UserError, match="method ssu needs source text to choose what trains"):
        Setup.of(make_run(values | {"data": data}))
