"""What a backbone computes in."""

import pytest
import torch

from neutral_residues.backbone import computes_in_bf16, frozen_precision
from neutral_residues.config.run import TrainingSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["avx512_bf16", "amx_bf16"])
def test_auto_takes_bfloat16_on_a_cpu_that_has_it_for_wide_backbones(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = TrainingSettings()
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, kind: True})
    assert computes_in_bf16(auto, CPU, hidden_size=576)
    assert not computes_in_bf16(auto, CPU, hidden_size=192)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, kind: False})
    assert not computes_in_bf16(auto, CPU, hidden_size=576)


def test_what_is_set_goes_before_what_the_cpu_has() -> None:
    assert computes_in_bf16(TrainingSettings(precision="bfloat16"), CPU, hidden_size=8)
    assert not computes_in_bf16(TrainingSettings(precision="float32"), CPU, hidden_size=4096)


def test_frozen_weights_follow_the_precision_unless_they_are_set() -> None:
    assert frozen_precision(TrainingSettings(), bf16=True) == (torch.bfloat16, None)
    assert frozen_precision(TrainingSettings(frozen_weights="nf4"), bf16=False) == (
        torch.float32,
        "nf4",
    )
    held = TrainingSettings(frozen_weights="float32")
    assert frozen_precision(held, bf16=True) == (torch.float32, None)
