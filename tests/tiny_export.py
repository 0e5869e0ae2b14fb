"""Tiny extended models of any family, and their exports loaded again in this process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from families import FAMILIES
from neutral_residues.errors import UserError
from neutral_residues.export.export import export_model
from neutral_residues.export.formats.table import find_format
from neutral_residues.export.parts import extract_parts
from neutral_residues.export.reference import record_reference
from neutral_residues.export.verify_child import compare_logits
from neutral_residues.tuner.config import NeutralResiduesConfig
from neutral_residues.tuner.gates import extension_digest, observe_gates, set_thresholds
from neutral_residues.tuner.thresholds import Thresholds
from tiny_llama import perturb, token_ids

SIGMOID = {"block_gate": "sigmoid", "gate_start": "half", "gate_reads": "layer"}
MIXTURE = SIGMOID | {"head_rank": 0}
"""What a stock mixture of experts can hold."""
NEW_TOKENS = {"gate_reads": "tokens", "new_tokens": 12, "new_tokens_rank": 4}


def extended(
    family: str = "llama", *, backbone: dict[str, Any] | None = None, **settings: Any
) -> PeftModel:
    """A random model of that family whose adapters, from its second layer on, do something; without
    other settings each has a gate of its own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **FAMILIES[family] | (backbone or {}))
    model = AutoModelForCausalLM.from_config(config).eval()
    # Norms start at 1 or 0 and biases at 0, which would hide a mistake in them.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    settings = {"width": 8, "first_layer": 1, "gate_reads": "layer"} | settings
    return perturb(get_peft_model(model, NeutralResiduesConfig(**settings))).eval()


def calibrated(model: PeftModel, form: Any = "cut", share: float = 0.3, over: int = 1) -> PeftModel:
    """With thresholds that leave each gate open on that share of some random tokens, or fewer."""
    with observe_gates(model) as seen, torch.no_grad():
        model(input_ids=token_ids(8, 32))
    values = {name: max(0.0, float(x.quantile(1 - share))) for name, x in seen.items()}
    assert any(values.values())
    if over > 1:  # a mean is far below the largest
        values = {name: float(x.relu().mean()) for name, x in seen.items()}
    thresholds = Thresholds(form, values, extension_digest(model), over, "Nothing gets worse.")
    set_thresholds(model, thresholds)
    return model


def exported(model: PeftModel, to: str, folder: Path) -> dict[str, Any]:
    """Write the export; how far its logits are from the live model's, of which the adapters are a
    visible part."""
    with model.disable_adapter():
        without = record_reference(model).logits_BTV
    reference, row = record_reference(model), find_format(to)
    logits = reference.logits_BTV
    assert reference.num_inactive == 0
    assert logits.shape != without.shape or (logits - without).abs().max() > 1e-2
    parts = extract_parts(model)
    assert row.refusal(parts) is None
    folder.mkdir(exist_ok=True)
    row.write(parts, folder, torch.float32)
    tensors = {"token_ids": reference.token_ids_BT, "logits": logits}
    return compare_logits(folder, tensors, trust_remote_code=row.trust_remote_code)


def assert_exact(answer: dict[str, Any], tolerance: float = 1e-6) -> None:
    """As a share of the largest logit; float32 keeps seven digits, of which a cache may cost more,
    because sums of another length run through other kernels."""
    assert answer["outputs"] <= tolerance * answer["largest"], answer
    assert answer["cache"] <= max(1e-5, 5e-6 * answer["largest"]), answer


def assert_refused(model: PeftModel, to: str, folder: Path, reason: str) -> None:
    line = f"^{to} cannot hold this extension: .*{reason}.*; formats that can: transformers"
    with pytest.raises(UserError, match=line):
        export_model(model, folder / "refused", to=to)
    assert not (folder / "refused").exists()
