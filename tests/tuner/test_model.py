"""PEFT's verbs on a tiny Llama: each is shown to matter before it is shown to be undone."""

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaMLP

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.tuner.neutral import PREFIX
from tiny_llama import extended_llama, logits, perturb, saved, tiny_llama, token_ids


@pytest.mark.parametrize("gate", ["relu", "elu", "sigmoid", "none"])
def test_attached_it_changes_nothing_trained_it_does_disabled_it_does_not(gate: str) -> None:
    expected = logits(tiny_llama())
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, block_gate=gate)).eval()
    assert torch.equal(logits(model), expected)
    perturb(model)
    assert not torch.allclose(logits(model), expected, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(model), expected)


def test_unload_gives_the_stock_modules_back() -> None:
    model = extended_llama()
    assert not torch.equal(logits(model), logits(tiny_llama()))
    stock = model.unload()
    assert type(stock.model.layers[0].mlp) is LlamaMLP
    assert not residue_layers(stock)
    assert torch.equal(logits(stock), logits(tiny_llama()))


@pytest.mark.parametrize("verb", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused(verb: str) -> None:
    model = extended_llama()
    with pytest.raises(UserError, match=r"cannot be merged.*unload\(\)"):
        getattr(model, verb)()


def test_only_the_residues_train() -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8))
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) >= 2 * 4
    assert all(f".{PREFIX}." in name for name in trainable)
    assert model.peft_config["default"].num_new_weights == sum(trainable.values())


def test_a_budget_becomes_a_width() -> None:
    # Width 128 and four layers, so that 20 % can be met.
    backbone = tiny_llama(hidden_size=128, num_hidden_layers=4, intermediate_size=256)
    num_backbone = sum(p.numel() for p in backbone.parameters())
    config = get_peft_model(backbone, NeutralResiduesConfig(budget=0.2)).peft_config["default"]
    assert config.num_backbone_weights == num_backbone
    assert config.num_new_weights / num_backbone == pytest.approx(0.2, rel=0.02)


@pytest.mark.filterwarnings(
    "ignore:Adapter name .* should not be contained in the prefix:UserWarning"
)
@pytest.mark.parametrize("name", ["x", "neutral", "residues", "fr.ca", "train", "keys", "gate"])
@pytest.mark.parametrize("native", [False, True], ids=["peft", "transformers"])
def test_adapter_names_that_would_be_confused_are_refused(name: str, native: bool) -> None:
    attach = tiny_llama().add_adapter if native else partial(get_peft_model, tiny_llama())
    with pytest.raises(UserError, match=f"adapter name; got {name}; allowed: two characters"):
        attach(NeutralResiduesConfig(width=8), adapter_name=name)


def test_it_compiles_as_one_graph(tmp_path: Path) -> None:
    # Loaded and never run: the check of the loaded weights must not break the graph either.
    model = PeftModel.from_pretrained(tiny_llama(), saved(extended_llama(), tmp_path)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = logits(compiled)
    torch.testing.assert_close(found, logits(extended_llama()), atol=1e-5, rtol=1e-5)


def test_greedy_decoding_with_a_cache_and_without() -> None:
    model = extended_llama()
    settings = {
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "do_sample": False,
        "attention_mask": torch.ones(2, 12),
    }
    ids = token_ids()
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))
    with model.disable_adapter():
        assert not torch.equal(cached, model.generate(input_ids=ids, use_cache=True, **settings))


def test_the_trainer_resumes_to_the_same_weights(tmp_path: Path) -> None:
    rows = [{"input_ids": row, "labels": row} for row in token_ids(batch=8)]

    def train(folder: str, resume: str | None) -> PeftModel:
        model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8))
        settings = TrainingArguments(
            str(tmp_path / folder),
            max_steps=4,
            save_steps=2,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        Trainer(model, settings, train_dataset=rows).train(resume_from_checkpoint=resume)
        return model.eval()

    through = train("through", None)
    assert not torch.equal(logits(through), logits(tiny_llama()))
    resumed = train("resumed", str(tmp_path / "through" / "checkpoint-2"))
    assert torch.equal(logits(resumed), logits(through))
