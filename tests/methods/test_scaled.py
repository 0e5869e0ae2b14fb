"""What a finished run has learnt, times a share: 0 is the backbone, 1 the trained model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neutral_residues import UserError, extend
from neutral_residues.backbone import load_backbone
from neutral_residues.config.run import make_run
from neutral_residues.evaluation.saved import load_saved
from tiny_run import SCALED, method_values, run_values


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(64, 96)[None]).logits


@pytest.mark.parametrize("method", SCALED)
def test_it_lies_between_backbone_and_trained_model(tmp_path: Path, method: str) -> None:
    trained, training = SCALED[method], {"steps": 6, "learning_rate": 0.02}
    extend(make_run(method_values(tmp_path, trained, **training)))
    ends = {0.0: logits(load_backbone(str(tmp_path / "backbone"), dtype=torch.float32))}
    ends[1.0] = logits(load_saved(tmp_path / trained).model)
    between: dict[float, Tensor] = {}
    for share in (0.0, 0.5, 1.0):
        values = method_values(tmp_path, method, **training) | {
            "output": str(tmp_path / f"at-{share}")
        }
        values["scaling"] = values["scaling"] | {"share": share}
        extend(make_run(values))
        between[share] = logits(load_saved(tmp_path / f"at-{share}").model)
    for share, expected in ends.items():
        torch.testing.assert_close(between[share], expected, rtol=0, atol=1e-6)
    assert not any(torch.allclose(between[0.5], end, atol=1e-3) for end in ends.values())


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "scaling.trained; allowed: the output folder of a finished run of the method lora"),
        ({"trained": "none"}, "scaling.trained; got .*none; allowed: the output folder"),
        (
            {"trained": "adapter"},
            "scaling.trained: method of .*adapter; got adapter; allowed: lora",
        ),
    ],
)
def test_it_needs_a_finished_run_of_its_method(
    tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    extend(make_run(method_values(tmp_path, "adapter", steps=1)))
    scaling = {key: str(tmp_path / value) for key, value in changes.items()}
    values = run_values(tmp_path) | {"method": "lora-scaled", "scaling": scaling}
    with pytest.raises(UserError, match=line):
        extend(make_run(values))
    assert not (tmp_path / "run").exists()


def test_its_settings_are_those_of_the_training(tmp_path: Path) -> None:
    training = {"steps": 1, "kl_weight": 1.0}
    extend(make_run(method_values(tmp_path, "finetune", **training)))
    values = method_values(tmp_path, "wise-ft", **training)
    for changes, line in (
        ({"seed": 5}, "is trained with seed 0; got 5; give the same seed, or another run"),
        ({"training": values["training"] | {"steps": 2}}, r"training\.steps 1; got 2"),
        ({"training": values["training"] | {"kl_weight": 0.0}}, r"training\.kl_weight 1\.0; got 0"),
        ({"data": values["data"] | {"source_share": 0.5}}, r"data\.source_share .*; got 0\.5"),
    ):
        with pytest.raises(UserError, match=line):
            extend(make_run(values | changes))
    assert not Path(values["output"]).exists()
    assert extend(make_run(values)).config["training"]["steps"] == 1
