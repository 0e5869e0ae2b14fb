"""A model folder with its own code: any gate, any family; and the rules that let other runtimes
read that code."""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, DynamicCache

from neutral_residues.errors import UserError
from neutral_residues.export.export import export_model
from neutral_residues.export.reference import record_reference
from neutral_residues.tuner.config import NeutralResiduesConfig
from neutral_residues.tuner.gates import only_strongest
from tiny_export import (
    NEW_TOKENS,
    SIGMOID,
    assert_exact,
    assert_refused,
    calibrated,
    exported,
    extended,
)
from tiny_llama import perturb, token_ids

TOKENS = {"gate_reads": "tokens"}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"block_gate": "relu"}),
        ("llama", {"block_gate": "elu", "activation": "gelu"}),
        ("llama", SIGMOID),
        ("llama", {"block_gate": "none"}),
        ("llama", {"placement": "attention"}),
        ("qwen3", {}),
        ("gemma3_text", {}),
        ("gpt_neox", {}),
        ("gpt2", SIGMOID),
        ("bloom", {}),
        ("gpt_oss", {}),
        ("mixtral", {}),
        ("qwen3_next", {}),
        ("apertus", {}),
        ("llama", {"head_rank": 0}),
        ("gemma2", {}),
        ("cohere", {}),
        ("phi", SIGMOID),
        ("llama", TOKENS),
        ("llama", TOKENS | {"block_gate": "elu", "placement": "attention"}),
        ("llama", TOKENS | {"block_gate": "sigmoid", "head_rank": 0}),
        ("gemma", TOKENS),
        ("gemma3n_text", TOKENS),
        ("gpt_neox", TOKENS),
        ("gpt2", TOKENS),
        ("bloom", TOKENS),
        ("gpt_oss", TOKENS),
        ("qwen3_next", TOKENS),
        ("mamba", TOKENS),
        ("mamba2", {}),
        ("nemotron_h", TOKENS | {"first_layer": 0}),
        ("zamba2", TOKENS),
        ("llama", NEW_TOKENS),
        ("llama", NEW_TOKENS | {"block_gate": "none"}),
        ("llama", NEW_TOKENS | {"block_gate": "sigmoid", "head_rank": 0}),
        ("gemma2", NEW_TOKENS),
        ("gemma3n_text", NEW_TOKENS),
        ("gpt2", NEW_TOKENS),
        ("gpt_neox", NEW_TOKENS),
        ("bloom", NEW_TOKENS),
        ("cohere", NEW_TOKENS),
        ("qwen3_next", NEW_TOKENS),
    ],
)
def test_it_holds_every_extension(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    answer = exported(extended(family, **settings), "transformers", tmp_path)
    assert answer["outputs"] == 0.0
    assert_exact(answer)


@pytest.mark.parametrize("head_ranks", [(4, 6), (0, 6), (4, 0)])
def test_several_adapters_are_summed(tmp_path: Path, head_ranks: tuple[int, int]) -> None:
    model = extended(head_rank=head_ranks[0])
    second = SIGMOID | {"layers_to_transform": [0, 1], "head_rank": head_ranks[1]}
    model.add_adapter("second", NeutralResiduesConfig(width=4, **second))
    model.base_model.set_adapter(["default", "second"])
    perturb(model)
    assert exported(model, "transformers", tmp_path)["outputs"] == 0.0
    assert [r["name"] for r in json.loads((tmp_path / "config.json").read_text())["residues"]] == [
        "default",
        "second",
    ]


def load(folder: Path, kind: Any = AutoModelForCausalLM) -> nn.Module:
    return kind.from_pretrained(folder, trust_remote_code=True)


def test_a_round_trip_through_transformers_keeps_all(tmp_path: Path) -> None:
    exported(extended(backbone={"tie_word_embeddings": True}), "transformers", tmp_path / "once")
    model = load(tmp_path / "once")
    model.save_pretrained(tmp_path / "twice")
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "twice")(ids).logits, model(ids).logits)
        decoder = load(tmp_path / "once", AutoModel)
        assert torch.equal(decoder(ids).last_hidden_state, model.model(ids).last_hidden_state)


def two_readers(folder: Path) -> tuple[nn.Module, nn.Module]:
    """A model with two gates that read the text and one in each layer, live and exported."""
    model = extended(**TOKENS)
    for name, reads in (("second", "tokens"), ("third", "layer")):
        model.add_adapter(name, NeutralResiduesConfig(width=4, gate_reads=reads))
    model.base_model.set_adapter(["default", "second", "third"])
    perturb(model)
    assert exported(copy.deepcopy(model), "transformers", folder)["outputs"] == 0.0
    return model, load(folder)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("padding", [0, 5])
def test_a_gate_that_reads_the_text_generates_as_live(
    tmp_path: Path, settings: dict[str, Any], padding: int
) -> None:
    live, loaded = two_readers(tmp_path)
    ids = torch.cat([torch.full((2, padding), 9), token_ids(2, 20)], dim=1)
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    settings = settings | {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    found, expected = (
        model.generate(input_ids=ids, attention_mask=mask, **settings) for model in (loaded, live)
    )
    assert torch.equal(found, expected)


@torch.no_grad()
def test_a_gate_that_reads_the_text_is_called_as_live(tmp_path: Path) -> None:
    live, loaded = two_readers(tmp_path)
    ids = token_ids(2, 24)
    embeddings = live.get_input_embeddings()(ids)
    cache = DynamicCache()
    loaded(ids[:, :20], past_key_values=cache)
    cache.crop(-2)
    for arguments in (
        {"input_ids": ids, "logits_to_keep": 3},
        {"input_ids": ids, "logits_to_keep": torch.tensor([2, 7])},
        {"inputs_embeds": embeddings},
        {"input_ids": ids, "position_ids": torch.arange(24)[None] % 13},
    ):
        found, expected = (model(**arguments).logits for model in (loaded, live))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    rest = loaded(ids[:, 18:], past_key_values=cache).logits
    torch.testing.assert_close(rest, live(input_ids=ids).logits[:, 18:], atol=1e-4, rtol=1e-5)
    foreign = DynamicCache()
    with live.disable_adapter():
        live(input_ids=ids, past_key_values=foreign)
    with pytest.raises(ValueError, match="past_key_values were computed without 'default'"):
        loaded(ids[:, :1], past_key_values=foreign)


def test_a_gate_that_reads_the_text_trains_is_copied_and_rounded(tmp_path: Path) -> None:
    _, loaded = two_readers(tmp_path)
    ids = token_ids(2, 24)
    loaded.train()(input_ids=ids, labels=ids).loss.backward()
    (reader, _) = loaded.model.token_readers
    assert all(parameter.grad.any() for parameter in reader.parameters())
    twin = copy.deepcopy(loaded).eval()
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, loaded.eval()(ids).logits)
        assert loaded.bfloat16()(ids).logits.isfinite().all()
    assert twin.model.layers[1].mlp.residues[0].reader[0] is twin.model.token_readers[0]


V, N = 64, 12


def with_new_tokens(folder: Path, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """A model with new tokens beside an adapter without, live and exported."""
    model = extended(**NEW_TOKENS | settings)
    model.add_adapter("second", NeutralResiduesConfig(width=4))
    model.base_model.set_adapter(["default", "second"])
    perturb(model)
    assert exported(copy.deepcopy(model), "transformers", folder)["outputs"] == 0.0
    return model, load(folder)


def mixed_ids(rows: int = 2, length: int = 20) -> torch.Tensor:
    """Old and new tokens."""
    new = torch.arange(length) % 3 == 1
    return token_ids(rows, length).where(~new, V + torch.arange(length) % N)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("block_gate", ["relu", "none"])
def test_new_tokens_are_generated_as_live(
    tmp_path: Path, settings: dict[str, Any], block_gate: str
) -> None:
    live, loaded = with_new_tokens(tmp_path, block_gate=block_gate)
    ids = torch.cat([torch.full((2, 5), 9), mixed_ids()], dim=1)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    settings = settings | {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    found, expected = (
        model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **settings)
        for model in (loaded, live)
    )
    assert torch.equal(found, expected)
    assert (found[:, ids.shape[1] :] >= V).any()


@torch.no_grad()
def test_new_tokens_are_called_as_live(tmp_path: Path) -> None:
    live, loaded = with_new_tokens(tmp_path)
    ids = mixed_ids()
    embeddings = live.get_input_embeddings()(ids)
    whole = live(input_ids=ids).logits
    assert 0 < whole[..., V:].isneginf().all(-1).float().mean() < 1
    cache = DynamicCache()
    loaded(ids[:, :15], past_key_values=cache)
    cache.crop(-2)
    rest = loaded(ids[:, 13:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 13:], atol=1e-4, rtol=1e-4)
    assert torch.equal(loaded.get_input_embeddings()(ids), embeddings)
    assert torch.equal(loaded(inputs_embeds=embeddings).logits, whole)
    last = loaded(ids, logits_to_keep=3).logits
    torch.testing.assert_close(last, whole[:, -3:], atol=1e-5, rtol=1e-5)
    assert torch.equal(load(tmp_path, AutoModel)(ids).last_hidden_state, loaded.model(ids)[0])
    with pytest.raises(IndexError):
        loaded(ids + N)


def test_new_tokens_keep_the_size_of_the_backbones_tables(tmp_path: Path) -> None:
    model = extended(backbone={"tie_word_embeddings": True}, **NEW_TOKENS)
    assert exported(model, "transformers", tmp_path)["outputs"] == 0.0
    loaded = load(tmp_path)
    assert loaded.config.vocab_size == len(loaded.lm_head.weight) == V
    assert loaded.config.residues[0]["new_tokens"]["number"] == N
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not type(loaded).is_backend_compatible()
    loaded.save_pretrained(tmp_path / "twice")
    twice, ids = load(tmp_path / "twice").bfloat16(), mixed_ids()
    with torch.no_grad():
        assert torch.equal(twice(ids).logits.isneginf(), twice.float()(ids).logits.isneginf())


def test_code_that_asks_the_configuration_gets_all_logits(tmp_path: Path) -> None:
    live, loaded = with_new_tokens(tmp_path, block_gate="none")
    ids = mixed_ids()
    settings = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 0}
    found = loaded.generate(
        input_ids=ids, output_scores=True, return_dict_in_generate=True, **settings
    )
    scores, expected = (
        model.compute_transition_scores(found.sequences, found.scores, normalize_logits=True)
        for model in (loaded, live)
    )
    assert (found.sequences[:, ids.shape[1] :] >= V).any()
    assert torch.equal(scores, expected)
    settings |= {"repetition_penalty": 1.05}
    looked_up = loaded.generate(input_ids=ids[:1], prompt_lookup_num_tokens=4, **settings)
    assert torch.equal(looked_up, loaded.generate(input_ids=ids[:1], **settings))
    assert loaded.config.vocab_size == V
    with pytest.raises(ValueError, match="would move the ids"):
        loaded.resize_token_embeddings(V + N)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_loss_counts_new_tokens_and_opens_gates(tmp_path: Path, family: str) -> None:
    exported(extended(family, **NEW_TOKENS), "transformers", tmp_path)
    loaded, ids = load(tmp_path).train(), mixed_ids()
    (reader,) = loaded.model.token_readers
    with torch.no_grad():
        reader.block_gate.weight.zero_()
        reader.block_gate.bias.fill_(-1.0)
    out = loaded(ids, labels=ids)
    expected = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert reader.block_gate.bias.grad < 0  # a step opens it
    assert all(it.grad.isfinite().all() for it in loaded.model.new_tokens.parameters())
    twin = copy.deepcopy(loaded).eval()
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, loaded.eval()(ids).logits)
        assert twin(ids).logits[..., V:].isneginf().all()
        for arguments in ({}, {"labels": ids}):
            outputs = twin(ids, return_dict=False, **arguments)
            assert torch.equal(outputs[len(arguments)], twin(ids).logits)
    assert twin.model.new_tokens.reader[0] is twin.model.token_readers[0]


def test_nobody_loads_the_backbone_alone_by_mistake(tmp_path: Path) -> None:
    exported(extended(), "transformers", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "neutral_residues_llama"
    assert config["architectures"] == ["NeutralResiduesLlamaForCausalLM"]
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=False)


def test_the_code_follows_the_rules_of_other_runtimes(tmp_path: Path) -> None:
    """vLLM's Transformers backend: it takes forwards apart by their source, and shards linear
    layers by their names."""
    exported(extended(head_rank=0), "transformers", tmp_path)
    model = load(tmp_path)
    assert type(model).is_backend_compatible()
    ours = {type(m) for m in model.modules() if type(m).__module__ == type(model).__module__}
    assert {kind.__name__ for kind in ours} >= {"GatedLinearUnit", "Residue", "BlockWithResidues"}
    for kind in ours:
        if "forward" in vars(kind):
            assert kind.forward.__code__.co_freevars == (), f"{kind.__name__}.forward is a closure"
            assert list(inspect.signature(kind.forward).parameters)[1] == "hidden_states"
    unit = model.model.layers[1].mlp.residues[0].adapter
    assert next(name for name, _ in unit.named_children()) == "gate"
    plan = model.config.base_model_tp_plan
    assert plan["layers.*.mlp.block.gate_proj"] == plan["layers.*.mlp.gate_proj"] == "colwise"
    assert not [key for key in vars(model.config) if "tp_plan" in key]


@pytest.mark.parametrize("settings", [{"gate_reads": "layer"}, TOKENS | {"head_rank": 0}])
def test_a_runtime_that_would_leave_a_part_out_refuses_it(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    exported(extended(**settings), "transformers", tmp_path)
    for kind in (AutoModel, AutoModelForCausalLM):
        assert not type(load(tmp_path, kind)).is_backend_compatible()


def test_a_tied_head_with_residues_stays_tied(tmp_path: Path) -> None:
    model = extended(backbone={"tie_word_embeddings": True}, block_gate="none")
    assert exported(model, "transformers", tmp_path)["outputs"] == 0.0
    loaded = load(tmp_path)
    with torch.autocast("cpu", torch.bfloat16):
        assert loaded(torch.arange(3, 23)[None]).logits.isfinite().all()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    names = load_file(tmp_path / "model.safetensors")
    assert {name for name in names if name.startswith("lm_head")} == {
        f"lm_head.residues.0.{name}.weight" for name in ("down", "up")
    }


def test_the_server_script_names_what_the_code_defines(tmp_path: Path) -> None:
    exported(extended(), "transformers", tmp_path)
    script = (tmp_path / "serve.py").read_text()
    compile(script, "serve.py", "exec")
    assert "from modeling_neutral_residues import NeutralResiduesLlamaForCausalLM" in script


def test_a_state_without_a_place_for_what_was_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the state of RwkvForCausalLM has no place"):
        export_model(extended("rwkv", **TOKENS), tmp_path / "refused", to="transformers")


def test_a_backbone_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    exported(extended(), "transformers", tmp_path / "once")
    twice = get_peft_model(
        load(tmp_path / "once"), NeutralResiduesConfig(width=4, target_modules=["self_attn"])
    )
    with pytest.raises(UserError, match="NeutralResiduesLlamaForCausalLM has code of its own"):
        export_model(twice, tmp_path / "twice", to="transformers")
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("settings", "form", "over"),
    [
        ({}, "cut", 1),
        ({}, "shift", 1),
        (TOKENS, "cut", 1),
        (TOKENS, "cut", 6),
        (TOKENS, "shift", 6),
        (NEW_TOKENS, "cut", 6),
    ],
)
def test_thresholds_come_along(
    tmp_path: Path, settings: dict[str, Any], form: str, over: int
) -> None:
    model = extended(**settings)
    trained = record_reference(model).logits_BTV
    calibrated(model, form, over=over)
    assert not torch.allclose(record_reference(model).logits_BTV, trained, atol=1e-3)
    assert_exact(exported(model, "transformers", tmp_path))


@pytest.mark.parametrize("over", [1, 6])
def test_only_the_strongest_extension_is_on(tmp_path: Path, over: int) -> None:
    live = extended(**TOKENS)
    for name in ("second", "third"):
        live.add_adapter(name, NeutralResiduesConfig(width=4, gate_reads="tokens"))
    live.base_model.set_adapter(["default", "second", "third"])
    perturb(live)
    both = record_reference(live).logits_BTV
    only_strongest(live, over)
    assert not torch.equal(record_reference(live).logits_BTV, both)
    assert_refused(live, "safetensors", tmp_path, "only the one with the strongest gate is on")
    assert_exact(exported(copy.deepcopy(live), "transformers", tmp_path))
    loaded, ids = load(tmp_path), token_ids(2, 20)
    settings = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    found, expected = (
        model.generate(input_ids=ids, attention_mask=mask, **settings) for model in (loaded, live)
    )
    assert torch.equal(found, expected)
