"""A live model becomes a verified folder, and stays usable; or there is no folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from neutral_residues.digest import check_digests
from neutral_residues.errors import UserError
from neutral_residues.export import export as module
from neutral_residues.export.export import export_model
from neutral_residues.export.verify import Difference
from neutral_residues.tuner.config import NeutralResiduesConfig
from tiny_export import MIXTURE, NEW_TOKENS, calibrated, extended
from tiny_llama import extended_llama, logits, perturb, tiny_llama
from tiny_run import byte_tokenizer


def test_the_live_model_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Difference("residues", outputs=0.0, cache=0.0, largest=1.0, num_inactive=0)
    monkeypatch.setattr(module, "compare", lambda *_, **__: exact)
    model = extended_llama().train()
    before, weights = logits(model), {n: p.clone() for n, p in model.named_parameters()}
    export_model(model, tmp_path / "rounded", to="transformers", dtype="bfloat16")
    assert model.training
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    assert torch.equal(logits(model), before)
    with model.disable_adapter():
        assert not torch.equal(logits(model), before)
    export_model(model, tmp_path / "copied", to="safetensors")
    check_digests(tmp_path / "copied", required=True)
    assert "model.safetensors" in (tmp_path / "copied" / "SHA256SUMS").read_text()
    export_model(model, tmp_path / "moved", to="safetensors", copy=False)
    copied, moved = (load_file(tmp_path / n / "model.safetensors") for n in ("copied", "moved"))
    assert copied.keys() == moved.keys()
    assert all(torch.equal(copied[name], moved[name]) for name in copied)


@pytest.mark.slow
def test_sixteen_bits_are_compared_with_the_rounded_model(tmp_path: Path) -> None:
    model = extended(**MIXTURE)
    difference = export_model(model, tmp_path / "out", to="qwen2_moe", dtype="bfloat16")
    assert difference.outputs <= 2e-6  # bfloat16 itself moves logits by a thousandth
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"torch.bfloat16"}


def test_a_wrong_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Difference("residues", outputs=0.1, cache=0.0, largest=1.0, num_inactive=0)
    monkeypatch.setattr(module, "compare", lambda *_, **__: wrong)
    with pytest.raises(UserError, match="the export is not the live model"):
        export_model(extended_llama(), tmp_path / "out", to="safetensors")
    assert not list(tmp_path.glob("*out*"))


def test_generation_ends_at_turns_and_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Difference("logits", outputs=0.0, cache=0.0, largest=1.0, num_inactive=0)
    monkeypatch.setattr(module, "compare", lambda *_, **__: exact)
    model = extended()
    own = model.generation_config.eos_token_id = [7, 8]
    tokenizer = byte_tokenizer()
    for name, given in (("default", None), ("given", 33)):
        export_model(
            model, tmp_path / name, to="transformers", tokenizer=tokenizer, end_of_text=given
        )
        saved = GenerationConfig.from_pretrained(tmp_path / name).eos_token_id
        assert saved == [*own, tokenizer.eos_token_id] + ([] if given is None else [given])
    assert model.generation_config.eos_token_id == own


def test_what_is_not_an_extension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a whole model, not an extension"):
        export_model(tiny_llama(), tmp_path / "out", to="dense")
    with pytest.raises(UserError, match="text has no effect without a tokenizer"):
        export_model(extended_llama(), tmp_path / "out", to="safetensors", text="Bonjour")
    with pytest.raises(UserError, match="end_of_text has no effect without a tokenizer"):
        export_model(extended_llama(), tmp_path / "out", to="safetensors", end_of_text=3)


def test_of_two_extensions_with_new_tokens_one_can_be_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Difference("residues", outputs=0.0, cache=0.0, largest=1.0, num_inactive=0)
    monkeypatch.setattr(module, "compare", lambda *_, **__: exact)
    model = extended(**NEW_TOKENS)
    model.add_adapter("other", NeutralResiduesConfig(width=8, **NEW_TOKENS))
    model.base_model.set_adapter(["default", "other"])
    perturb(model)
    for to in ("transformers", "safetensors"):
        with pytest.raises(UserError, match="default and other both have new tokens"):
            export_model(model, tmp_path / "out", to=to)
    assert not list(tmp_path.iterdir())
    model.set_adapter("default")
    export_model(model, tmp_path / "out", to="safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "It has 12 tokens of its own, with the ids 64 to 75" in card
    assert "new_logits(h, g)" in card


def test_the_card_says_what_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Difference("residues", outputs=0.0, cache=0.0, largest=1.0, num_inactive=0)
    monkeypatch.setattr(module, "compare", lambda *_, **__: exact)
    for to in ("transformers", "safetensors"):
        export_model(calibrated(extended()), tmp_path / to, to=to)
        assert "It is calibrated. Nothing gets worse." in (tmp_path / to / "README.md").read_text()
