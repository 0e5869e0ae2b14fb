"""The gate that reads the text: what it depends on, by hand, in batches, and token by token."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from families import FAMILIES, GPT, XLSTM, build
from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.tuner.blocks import CACHE_NAMES
from neutral_residues.tuner.embeddings import EmbeddingsLayer
from neutral_residues.tuner.layer import observe_residues, trained_gates
from neutral_residues.tuner.reader import (
    BEGINS_ANEW,
    CODE,
    HIDDEN,
    MOST_BEFORE,
    WINDOW,
    TokenReader,
    num_reader_weights,
)
from neutral_residues.tuner.routing import per_request
from tiny_llama import extended_llama, logits, perturb, saved, tiny_llama, token_ids


def reading(**settings: Any) -> PeftModel:
    return half_open(extended_llama(gate_reads="tokens", **settings))


def half_open(model: PeftModel) -> PeftModel:
    """Open on about half of the tokens, with gates up to about 1."""
    with torch.no_grad():
        for reader in reader_of(model).readers().values():
            reader.block_gate.weight.mul_(0.1)
            reader.block_gate.bias.zero_()
    return model


def reader_of(model: nn.Module) -> EmbeddingsLayer:
    (layer,) = [module for module in model.modules() if isinstance(module, EmbeddingsLayer)]
    return layer


@torch.no_grad()
def gates(model: nn.Module, ids: Tensor, **arguments: Any) -> Tensor:
    """(B, T) of a pass over these tokens."""
    model(input_ids=ids, **arguments)
    return reader_of(model).gates["default"].gate[..., 0]


@torch.no_grad()
def by_hand(reader: TokenReader, embeddings_TD: Tensor, position: int) -> Tensor:
    """The gate at one token, written without the code under test."""
    total = reader.window.bias.clone()
    for distance in range(min(WINDOW, position + 1)):
        row = embeddings_TD[position - distance]
        row = row / row.square().mean().sqrt()
        code = reader.code.weight @ F.silu(reader.rows.weight @ row + reader.rows.bias)
        code = code + reader.code.bias
        start = CODE * (WINDOW - 1 - distance)
        total = total + reader.window.weight[:, start : start + CODE] @ code
    return F.relu(reader.block_gate.weight @ F.silu(total) + reader.block_gate.bias)[0]


def test_the_formula() -> None:
    model, ids = reading(), token_ids(1, 24)
    found = gates(model, ids)[0]
    embeddings = model.get_base_model().model.embed_tokens.base_layer(ids)[0].detach()
    reader = reader_of(model).reader("default")
    expected = torch.stack([by_hand(reader, embeddings, t) for t in range(24)])
    assert expected[0] > 0  # but one token tells no language
    expected[0] = 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert 0 < (found > 0).sum() < 24


def test_it_starts_open_and_its_weights_are_counted() -> None:
    model = get_peft_model(tiny_llama(), NeutralResiduesConfig(width=8, gate_reads="tokens"))
    assert (gates(model, token_ids())[:, 1:] == 1).all()
    reader = reader_of(model).reader("default")
    assert sum(p.numel() for p in reader.parameters()) == num_reader_weights(32)
    config = model.peft_config["default"]
    assert config.num_new_weights == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert config.first_layer == 0
    assert trained_gates(model) == [reader]
    assert reader.window.weight.shape == (HIDDEN, CODE * WINDOW)


def test_every_layer_and_the_head_have_the_same_gate() -> None:
    seen: list[Tensor] = []

    class Hook:
        def on_residue(self, layer: Any, residue: Any, *_: Any) -> None:
            seen.append(residue.gate)

    model = reading()
    with observe_residues(residue_layers(model), Hook()):
        logits(model)
    assert len(seen) == 3
    assert all(torch.equal(gate, seen[0]) for gate in seen)


def test_text_further_back_than_the_window_does_not_matter() -> None:
    model, ids = reading(), token_ids(1, 40)
    changed = ids.clone()
    changed[:, :20] = 5
    torch.testing.assert_close(
        gates(model, ids)[:, 20 + WINDOW - 1 :], gates(model, changed)[:, 20 + WINDOW - 1 :]
    )
    assert not torch.allclose(gates(model, ids)[:, 20:24], gates(model, changed)[:, 20:24])


@pytest.mark.parametrize("training", [False, True])  # trainers generate too
@torch.no_grad()
def test_token_by_token_in_pieces_and_after_a_cut(training: bool) -> None:
    model, ids = reading(), token_ids(2, 30)
    whole, expected = gates(model, ids), logits_of(model, ids)
    model.train(training)
    for cut in (1, 5, 20):
        cache = DynamicCache()
        torch.testing.assert_close(
            gates(model, ids[:, :cut], past_key_values=cache), whole[:, :cut]
        )
        for t in range(cut, 30):
            now = model(input_ids=ids[:, t : t + 1], past_key_values=cache).logits
            torch.testing.assert_close(now[:, 0], expected[:, t], atol=1e-5, rtol=1e-4)
        cache.crop(-7)
        again = model(input_ids=ids[:, 23:], past_key_values=cache).logits
        torch.testing.assert_close(again, expected[:, 23:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor, **arguments: Any) -> Tensor:
    return model(input_ids=ids, **arguments).logits


GENERATE = {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"cache_implementation": "static"}])
def test_generation_does_not_depend_on_the_cache(settings: dict[str, Any]) -> None:
    model, ids = reading(), token_ids(2, 20)
    mask = torch.ones_like(ids)
    beams = {key: value for key, value in settings.items() if key == "num_beams"}
    plain = model.generate(
        input_ids=ids, attention_mask=mask, use_cache=False, do_sample=False, **beams, **GENERATE
    )
    found = model.generate(
        input_ids=ids, attention_mask=mask, do_sample=False, **settings, **GENERATE
    )
    assert torch.equal(found, plain)


RECURRENT = ("mamba", "mamba2", "rwkv", "nemotron_h", "zamba", "falcon_h1", "qwen3_next")


def reading_family(family: str) -> PeftModel:
    backbone = build(family, FAMILIES[family])
    config = NeutralResiduesConfig(width=8, gate_reads="tokens")
    return half_open(perturb(get_peft_model(backbone, config)).eval())


@torch.no_grad()
def left_behind(model: nn.Module, ids: Tensor, **given: Any) -> tuple[Tensor, dict[str, Any]]:
    """Logits, and what further tokens are to be given along with."""
    outputs = model(input_ids=ids, use_cache=True, **given)
    return outputs.logits, {name: outputs[name] for name in CACHE_NAMES if name in outputs}


@pytest.mark.parametrize("family", RECURRENT)
def test_what_was_read_is_kept_beside_recurrent_states(family: str) -> None:
    # Transformers' RWKV takes single tokens of one row only.
    model, ids = reading_family(family), token_ids(1 if family == "rwkv" else 2, 30)
    whole, expected = gates(model, ids, use_cache=False), logits_of(model, ids, use_cache=False)
    _, kept = left_behind(model, ids[:, :20])
    for t in range(20, 30):
        found, kept = left_behind(model, ids[:, t : t + 1], **kept)
        gate = reader_of(model).gates["default"].gate[..., 0]
        torch.testing.assert_close(gate, whole[:, t : t + 1])
        torch.testing.assert_close(found[:, 0], expected[:, t], atol=1e-5, rtol=1e-4)
    assert 0 < (whole[:, 20:] > 0).sum() < whole[:, 20:].numel()

    with model.disable_adapter():
        _, kept = left_behind(model, ids)
    with pytest.raises(UserError, match="were computed without 'default'"):
        left_behind(model, ids[:, :1], **kept)


def test_rows_that_rwkv_mixes_up_are_refused() -> None:
    model, ids = reading_family("rwkv"), token_ids(2, 8)
    _, kept = left_behind(model, ids[:, :7])
    with pytest.raises(UserError, match="got 4; allowed: the 2 read; give one row at a time"):
        left_behind(model, ids[:, 7:], **kept)


@pytest.mark.parametrize("family", ["mamba", "nemotron_h"])
def test_recurrent_models_in_batches_and_with_beams(family: str) -> None:
    model, ids = reading_family(family), token_ids(1, 20)
    padded = torch.cat([torch.full((1, 6), 9), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.long), torch.ones_like(ids)], dim=1)
    torch.testing.assert_close(gates(model, padded, attention_mask=mask)[:, 6:], gates(model, ids))
    settings: dict[str, Any] = {"do_sample": False, "num_beams": 3, **GENERATE}
    whole = torch.ones_like(ids)
    plain = model.generate(input_ids=ids, attention_mask=whole, use_cache=False, **settings)
    alone = model.generate(input_ids=ids, attention_mask=whole, **settings)
    together = model.generate(input_ids=padded, attention_mask=mask, **settings)
    assert torch.equal(alone, plain)
    assert torch.equal(together[:, 6:], plain)


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}])
def test_padding_on_the_left_is_not_read(cache: dict[str, Any]) -> None:
    model, ids = reading(), token_ids(1, 20)
    padded = torch.cat([torch.full((1, 6), 9), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.long), torch.ones_like(ids)], dim=1)
    found = gates(model, padded, attention_mask=mask)[:, 6:]
    torch.testing.assert_close(found, gates(model, ids))
    settings: dict[str, Any] = {"do_sample": False, **GENERATE}
    alone = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    together = model.generate(input_ids=padded, attention_mask=mask, **settings, **cache)
    assert torch.equal(together[:, 26:], alone[:, 20:])


def test_of_texts_packed_into_a_row_each_is_read_alone() -> None:
    model, one, other = reading(), token_ids(1, 9), token_ids(1, 21)[:, 9:]
    packed = torch.cat([one, other], dim=1)
    positions = torch.cat([torch.arange(9), torch.arange(12)])[None]
    expected = torch.cat([gates(model, one), gates(model, other)], dim=1)
    torch.testing.assert_close(gates(model, packed, position_ids=positions), expected)
    assert not torch.allclose(gates(model, packed), expected)


def test_while_it_trains_texts_begin_anew() -> None:
    model, ids = reading(), token_ids(2, BEGINS_ANEW + 20)
    parts = [gates(model, part) for part in ids.split(BEGINS_ANEW, dim=1)]
    whole = gates(model, ids)
    in_training = gates(model.train(), ids)
    torch.testing.assert_close(in_training, torch.cat(parts, dim=1))
    assert not torch.allclose(in_training, whole)
    begins = torch.arange(ids.shape[1]) - 9
    positions = torch.where(begins < 0, begins + 9, begins)[None]
    packed = gates(model, ids, position_ids=positions)
    torch.testing.assert_close(packed[:, :9], parts[0][:, :9])
    for start, end in ((9, 9 + BEGINS_ANEW), (9 + BEGINS_ANEW, ids.shape[1])):
        alone = gates(model.eval(), ids[:, start:end])
        torch.testing.assert_close(packed[:, start:end], alone)


def test_in_training_a_second_gate_knows_only_the_last_tokens() -> None:
    model, ids = reading(), token_ids(2, BEGINS_ANEW + 20)
    assert reader_of(model).gates == {}
    gates(model, ids)
    assert reader_of(model).gates["default"].begun is None
    before = [gates(model, ids[:, max(0, t - 1 - t % MOST_BEFORE) : t + 1]) for t in range(128)]
    gates(model.train(), ids)
    begun = reader_of(model).gates["default"].begun
    assert begun is not None
    expected = torch.stack([gate[:, -1] for gate in before], dim=1)
    torch.testing.assert_close(begun[:, :BEGINS_ANEW, 0], expected)
    assert not begun[:, BEGINS_ANEW].any()
    # Both know the same there. A difference by rounding would be a gradient with a random sign.
    gate = reader_of(model).gates["default"].gate
    assert torch.equal(begun[:, :MOST_BEFORE], gate[:, :MOST_BEFORE])


def test_embeddings_may_be_given_instead_of_tokens() -> None:
    model, ids = reading(), token_ids()
    embeddings = model.get_input_embeddings()(ids)
    with torch.no_grad():
        found = model(inputs_embeds=embeddings).logits
    torch.testing.assert_close(found, logits_of(model, ids))


@pytest.mark.parametrize("keep", [1, 5, torch.tensor([2, 3])])
def test_logits_of_some_positions_only(keep: Any) -> None:
    model, ids = reading(), token_ids()
    chosen = slice(-keep, None) if isinstance(keep, int) else keep
    expected = logits_of(model, ids)[:, chosen]
    torch.testing.assert_close(logits_of(model, ids, logits_to_keep=keep), expected)


def test_a_batch_may_mix_readers_and_own_gates() -> None:
    model = reading(adapter_name="french")
    model.add_adapter("german", NeutralResiduesConfig(width=8, gate_reads="tokens"))
    model.add_adapter("danish", NeutralResiduesConfig(width=8, gate_reads="layer"))
    perturb(model, seed=4).eval()
    ids, alone = token_ids(6, 24), {}
    for name in ("french", "german", "danish"):
        model.set_adapter(name)
        alone[name] = logits_of(model, ids)
    with model.disable_adapter():
        alone["__base__"] = logits_of(model, ids)
    assert torch.equal(alone["__base__"], logits_of(tiny_llama(), ids))
    names = ["french", "__base__", "german", "danish", "french", "__base__"]
    with per_request(model, names):
        mixed = logits_of(model, ids)
    for row, name in enumerate(names):
        torch.testing.assert_close(mixed[row], alone[name][row], atol=1e-5, rtol=1e-4)


def test_closed_on_all_tokens_the_model_is_the_backbone() -> None:
    model = reading()
    with torch.no_grad():
        reader_of(model).reader("default").block_gate.bias.fill_(-100)
    assert torch.equal(logits(model), logits(tiny_llama()))


def test_saved_loaded_copied_and_undone(tmp_path: Path) -> None:
    model = reading()
    expected = logits(model)
    loaded = PeftModel.from_pretrained(tiny_llama(), saved(model, tmp_path))
    assert torch.equal(logits(loaded), expected)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        reader_of(model).reader("default").block_gate.bias.fill_(-100)
    assert torch.equal(logits(twin), expected)
    plain = twin.unload()
    assert torch.equal(logits(plain), logits(tiny_llama()))
    assert not plain.model._forward_pre_hooks


def test_a_model_in_training_can_be_copied() -> None:
    model = reading().train()
    model(input_ids=token_ids(), labels=token_ids()).loss.backward()
    twin = copy.deepcopy(model).eval()
    assert torch.equal(logits(twin), logits(model.eval()))


def test_without_a_gate_there_is_nothing_to_read() -> None:
    gateless = extended_llama(gate_reads="tokens", block_gate="none")
    assert not any(isinstance(module, EmbeddingsLayer) for module in gateless.modules())
    assert torch.equal(logits(gateless), logits(extended_llama(block_gate="none")))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_learns_from_every_layer(checkpointing: bool) -> None:
    gradients = []
    for used in (False, checkpointing):
        model = reading().train()
        if used:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        with torch.no_grad(), model.disable_adapter():  # as for a KL divergence
            model(input_ids=token_ids(1, 5))
        loss.backward()
        gradients.append([p.grad for p in reader_of(model).reader("default").parameters()])
    assert all(g.any() for g in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_compiled_it_is_the_same() -> None:
    model = reading()
    expected = logits(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(logits(compiled), expected)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="gate_reads; got text; allowed: layer, tokens"):
        NeutralResiduesConfig(gate_reads="text")  # type: ignore[arg-type]
    config = NeutralResiduesConfig(width=8, gate_reads="tokens")
    with pytest.raises(UserError, match=r"gate_reads tokens needs.*set gate_reads to layer"):
        get_peft_model(build("openai-gpt", GPT), config)
    config = NeutralResiduesConfig(width=8, gate_reads="tokens")
    with pytest.raises(UserError, match=r"cannot keep what it has read; got xLSTMCache"):
        logits(get_peft_model(build("xlstm", XLSTM), config))
    model, ids, cache = reading(), token_ids(), DynamicCache()
    with torch.no_grad(), model.disable_adapter():
        model(input_ids=ids, past_key_values=cache)
    with pytest.raises(UserError, match="past_key_values were computed without 'default'"):
        model(input_ids=ids[:, :1], past_key_values=cache)
    with pytest.raises(UserError, match=r"reads the text, and this pass had none"):
        reading().get_base_model().model.layers[0].mlp(torch.randn(1, 3, 32))


def test_a_static_cache_keeps_the_codes_too() -> None:
    model, ids = reading(), token_ids(1, 24)
    cache = StaticCache(config=model.config, max_cache_len=32)
    whole = gates(model, ids)
    found = [gates(model, ids[:, :20], past_key_values=cache)]
    found += [gates(model, ids[:, t : t + 1], past_key_values=cache) for t in range(20, 24)]
    torch.testing.assert_close(torch.cat(found, dim=1), whole)
