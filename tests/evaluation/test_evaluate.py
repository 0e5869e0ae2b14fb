"""Both sides of the trade-off: against values by hand, and against a loop that scores one token at
a time."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.inference import untouched_rows
from neutral_residues.evaluation.sums import TokenSums
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.set_result import SetResult
from neutral_residues.tuner.embeddings import embeddings_layer
from tiny_llama import extended_llama

VOCABULARY, END = 64, 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def text(
    *document_tokens: int, name: str = "en", role: str = "source", seed: int = 0
) -> TokenStream:
    """Documents of so many tokens each (END included) and of three bytes a token."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, VOCABULARY, sum(document_tokens)).astype(np.uint16)
    ends = np.cumsum(document_tokens).astype(np.int64)
    tokens[ends - 1] = END
    return TokenStream(name, role, tokens, ends, 3 * np.array(document_tokens, dtype=np.int64))


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def extended(*, identity: bool = False, **config: Any) -> Any:
    """The tiny model with an extension, which changes its output unless `identity`."""
    model = peft.get_peft_model(
        llama(),
        NeutralResiduesConfig(
            **({"width": 8, "gate_start": "random", "gate_reads": "layer"} | config)
        ),
    )
    if not identity:
        torch.manual_seed(1)
        for layer in residue_layers(model).values():
            nn.init.normal_(layer.neutral_residues["default"].down.weight, std=0.5)
            if layer.is_head:
                nn.init.normal_(layer.neutral_residues["default"].up.weight, std=0.5)
    return model


def score(model: nn.Module, stream: TokenStream, **settings: Any) -> SetResult:
    context = settings.pop("context_tokens", 16)
    stride = settings.pop("stride_tokens", max(1, context // 2))
    windows = Windows(
        settings.pop("end_of_text", END), context, stride, settings.pop("batch_rows", 8)
    )
    return evaluate(model, [stream], windows, **({"kl": True} | settings))[stream.name]


def alone(model: nn.Module, stream: TokenStream) -> float:
    """Nats of the stream under one model, which is taken for its own backbone."""
    return score(model, stream, reference=model).extended_nats


def gates_zero(found: SetResult) -> list[int]:
    """Tokens with a gate of 0, by layer."""
    return [round((layer.gates_zero or 0.0) * found.num_tokens) for layer in found.layers]


def residue_sizes(found: SetResult) -> list[float]:
    return [layer.residue_rms for layer in found.layers]


@torch.no_grad()
def naive_nats(model: nn.Module, tokens: np.ndarray, context: int, stride: int) -> list[float]:
    """Nats of each token, one forward pass for each: the definition."""
    num_tokens, nats = len(tokens), []
    with_end_before = [END, *tokens.tolist()]
    for target in range(num_tokens):
        window = 0 if target < context else 1 + (target - context) // stride
        end = min(context + window * stride, num_tokens)
        start = max(0, end - context)
        logits = model(input_ids=torch.tensor([with_end_before[start : target + 1]])).logits[0, -1]
        nats.append(-float(logits.double().log_softmax(-1)[int(tokens[target])]))
    return nats


# --- by hand


def test_uniform_model_has_the_vocabulary_as_its_perplexity() -> None:
    model = extended()
    nn.init.zeros_(model.get_output_embeddings().weight)
    nn.init.zeros_(residue_layers(model)["base_model.model.lm_head"].adapter("default").up.weight)
    stream = text(30, 11, 9)
    found = score(model, stream)
    assert (found.num_tokens, found.num_bytes, found.num_documents) == (50, 150, 3)
    assert found.extended_token_perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.backbone_token_perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.extended_bits_per_byte == pytest.approx(math.log2(VOCABULARY) * 50 / 150, rel=1e-6)
    assert found.kl_nats == 0.0


def rigged() -> Any:
    """Gates that depend on the input token alone: open in layer 0 on even ones, in layer 1 on
    multiples of three."""
    model = extended(head_rank=0)
    inner = model.get_base_model().model
    with torch.no_grad():
        for block in inner.layers:  # no attention and no FFN, so each layer sees the embedding
            block.self_attn.o_proj.weight.zero_()
            block.mlp.base_layer.down_proj.weight.zero_()
        tokens = torch.arange(VOCABULARY)
        inner.embed_tokens.weight[:, 0] = torch.where(tokens % 2 == 0, 1.0, -1.0)
        inner.embed_tokens.weight[:, 1] = torch.where(tokens % 3 == 0, 1.0, -1.0)
        for number, layer in enumerate(residue_layers(model).values()):
            layer.neutral_residues["default"].down.weight.zero_()
            layer.neutral_residues["default"].block_gate.weight.zero_()[0, number] = 1.0
    return model


def test_neutral_tokens_counted_by_hand() -> None:
    # Inputs: END = 0, then all tokens but the last: 0 1 2 3 4 5 6 7 8.
    tokens = np.array([1, 2, 3, 4, 5, 6, 7, 8, 0], dtype=np.uint16)
    stream = TokenStream("en", "source", tokens, np.array([9]), np.array([20]))
    for context, stride in ((16, 16), (4, 2), (3, 3), (4, 1)):
        found = score(rigged(), stream, context_tokens=context, stride_tokens=stride)
        assert gates_zero(found) == [4, 6]  # 1 3 5 7, and 1 2 4 5 7 8
        assert found.num_neutral_tokens == 3  # 1 5 7
        assert [layer.layer for layer in found.layers] == [0, 1]
    assert found.layers[0].gates_zero == 4 / 9
    assert found.neutral_share == 3 / 9


def test_residue_sizes_do_not_depend_on_the_windows() -> None:
    model, stream = rigged(), text(30)
    last = list(residue_layers(model).values())[-1]
    nn.init.normal_(last.neutral_residues["default"].down.weight)
    whole = residue_sizes(score(model, stream, context_tokens=32))
    assert whole[0] == 0.0
    assert whole[1] > 0.1
    for context, stride in ((8, 4), (5, 1)):
        found = score(model, stream, context_tokens=context, stride_tokens=stride)
        assert residue_sizes(found) == pytest.approx(whole, rel=1e-4)


def test_all_tokens_are_neutral_behind_a_shut_gate() -> None:
    model = extended()
    stream = text(20, 17)
    assert score(model, stream).num_neutral_tokens not in (None, 37)
    for layer in residue_layers(model).values():
        nn.init.zeros_(layer.neutral_residues["default"].block_gate.weight)
    found = score(model, stream)
    assert found.num_neutral_tokens == 37
    assert gates_zero(found) == [37, 37, 37]
    assert residue_sizes(found) == [0.0, 0.0, 0.0]
    assert found.kl_nats == 0.0
    assert found.extended_nats == found.backbone_nats


# --- windows


@pytest.mark.parametrize(
    ("context", "stride", "num_tokens"),
    [
        (8, 8, 24),
        (8, 4, 21),
        (8, 1, 12),
        (7, 3, 15),
        (5, 5, 13),
        (16, 8, 9),
        (16, 4, 16),
        (1, 1, 6),
        (12, 10, 23),
    ],
)
def test_sliding_window_equals_one_token_at_a_time(
    context: int, stride: int, num_tokens: int
) -> None:
    model, stream = extended(), text(num_tokens)
    found = score(model, stream, context_tokens=context, stride_tokens=stride, batch_rows=3)
    assert found.num_tokens == num_tokens
    assert found.extended_nats == pytest.approx(
        sum(naive_nats(model, stream.tokens, context, stride)), rel=1e-5
    )
    assert found.backbone_nats == pytest.approx(
        sum(naive_nats(llama(), stream.tokens, context, stride)), rel=1e-5
    )
    assert found.kl_nats is not None
    assert found.kl_nats > 0.01  # the two sides do differ


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5)])
def test_nats_by_token_and_document_are_those_of_each_token_alone(
    context: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[TokenSums] = []
    monkeypatch.setattr(
        "neutral_residues.evaluation.evaluate.breakdown",
        lambda sums, stream, tokenizer: given.append(sums),
    )
    model, stream = extended(), text(20, 7, 30, 11)
    settings = {"context_tokens": context, "stride_tokens": stride, "batch_rows": 2}
    found = score(model, stream, tokenizer=object(), **settings)
    (sums,) = given
    for one, by_type, by_document, total in (
        (model, sums.extended_V, sums.extended_D, found.extended_nats),
        (llama(), sums.backbone_V, sums.backbone_D, found.backbone_nats),
    ):
        nats = np.array(naive_nats(one, stream.tokens, context, stride))
        np.testing.assert_allclose(by_type, np.bincount(stream.tokens, nats, VOCABULARY), rtol=1e-4)
        np.testing.assert_allclose(
            by_document, np.add.reduceat(nats, [0, *stream.document_ends[:-1]]), rtol=1e-4
        )
        assert by_type.sum() == pytest.approx(total, rel=1e-12)
        assert by_document.sum() == pytest.approx(total, rel=1e-12)
    assert sums.counts_V.tolist() == np.bincount(stream.tokens, minlength=VOCABULARY).tolist()


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 5)])
def test_of_chats_only_answers_are_scored(context: int, stride: int) -> None:
    whole = text(20, 7, 30, 11)
    predicted = np.random.default_rng(1).random(whole.num_tokens) < 0.3
    chats = dataclasses.replace(whole, predicted=predicted)
    model = extended()
    found = score(model, chats, context_tokens=context, stride_tokens=stride, batch_rows=2)
    nats = np.array(naive_nats(model, whole.tokens, context, stride))
    assert found.num_tokens == predicted.sum()
    assert found.extended_nats == pytest.approx(nats[predicted].sum(), rel=1e-5)
    all_scored = dataclasses.replace(whole, predicted=np.ones_like(predicted))
    settings = {"context_tokens": context, "stride_tokens": stride}
    one, other = (score(model, it, **settings) for it in (whole, all_scored))
    assert one.extended_nats == other.extended_nats
    assert gates_zero(one) == gates_zero(other)


# --- batches, chunks, models


def same(a: SetResult, b: SetResult) -> None:
    numbers = ("backbone_nats", "extended_nats", "kl_nats", "num_neutral_tokens", "num_tokens")
    one, other = ({name: getattr(result, name) for name in numbers} for result in (a, b))
    assert one == pytest.approx(other, rel=1e-5)
    assert gates_zero(a) == gates_zero(b)
    assert residue_sizes(a) == pytest.approx(residue_sizes(b), rel=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_batch_size_does_not_count(rows: int) -> None:
    model, stream = extended(), text(50, 31)
    same(score(model, stream, batch_rows=rows), score(model, stream, batch_rows=3))


def test_deterministic() -> None:
    model, stream = extended(), text(50)
    assert score(model, stream) == score(model, stream)


def test_chunks_of_logits_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = extended(), text(50)
    whole = score(model, stream)
    monkeypatch.setattr("neutral_residues.evaluation.sums.LOGITS_PER_CHUNK", 3 * VOCABULARY)
    same(score(model, stream), whole)


def test_windows_are_fewer_where_their_logits_would_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, stream = extended(), text(50, 31)
    whole, rows = score(model, stream), []
    limit = "neutral_residues.evaluation.windows.LOGITS_PER_BATCH"
    monkeypatch.setattr(limit, 3 * 16 * VOCABULARY)
    model.get_input_embeddings().register_forward_hook(lambda *a: rows.append(len(a[2])))
    same(score(model, stream), whole)
    assert max(rows) == 3


@pytest.mark.parametrize("stride", [8, 3])
def test_windows_on_which_no_gate_opens_are_run_once(
    stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, stream = extended_llama(gate_reads="tokens"), text(50, 31)
    windows, rows = Windows(END, 8, stride, batch_rows=5), []
    inputs = [windows.rows(stream.tokens, it)[0] for it in windows.batches(stream.num_tokens)]
    embeddings = embeddings_layer(model)
    assert embeddings is not None
    with torch.no_grad():
        highest = []
        for input_ids in inputs:
            embeddings(input_ids)
            highest.append(embeddings.gates["default"].logits.flatten(1).amax(1))
        embeddings.readers()["default"].block_gate.bias -= torch.cat(highest).median()
    num_shut = sum(int(untouched_rows(model, it).sum()) for it in inputs)
    assert 0 < num_shut < (num_windows := sum(map(len, inputs)))
    head = model.get_base_model().lm_head.base_layer
    head.register_forward_hook(lambda *a: rows.append(len(a[2])))
    shared = score(model, stream, context_tokens=8, stride_tokens=stride, batch_rows=5)
    assert sum(rows) == 2 * num_windows - num_shut
    never = "neutral_residues.evaluation.evaluate.untouched_rows"
    monkeypatch.setattr(never, lambda _, given: torch.zeros(len(given), dtype=torch.bool))
    rows.clear()
    same(score(model, stream, context_tokens=8, stride_tokens=stride, batch_rows=5), shared)
    assert sum(rows) == 2 * num_windows
    assert shared.kl_nats is not None
    assert shared.kl_nats > 0.01


def test_kl_equals_its_definition() -> None:
    model, stream = extended(), text(16)
    inputs = torch.tensor([[END, *stream.tokens[:-1].tolist()]])
    with torch.no_grad():
        q = model(input_ids=inputs).logits[0].double().log_softmax(-1)
        with model.disable_adapter():
            p = model(input_ids=inputs).logits[0].double().log_softmax(-1)
    assert score(model, stream).kl_nats == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)


def test_residue_sizes_equal_what_the_layers_add() -> None:
    model, stream = extended(), text(16)
    added: list[float] = []

    def note(layer: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        added.append(float((output - layer.base_layer(arguments[0])).double().square().mean()))

    hooks = [layer.register_forward_hook(note) for layer in residue_layers(model).values()]
    with torch.no_grad():
        model(input_ids=torch.tensor([[END, *stream.tokens[:-1].tolist()]]))
    for hook in hooks:
        hook.remove()
    rms = [math.sqrt(mean_square) for mean_square in added]
    assert residue_sizes(score(model, stream)) == pytest.approx(rms, rel=1e-4)


def test_several_active_extensions_count_as_their_sum() -> None:
    model, stream = extended(), text(30)
    one = score(model, stream)
    model.add_adapter(
        "second", NeutralResiduesConfig(width=8, gate_start="random", gate_reads="layer")
    )
    model.base_model.set_adapter(["default", "second"])
    for layer in residue_layers(model).values():  # the same residue with the other sign
        first, second = layer.adapter("default"), layer.adapter("second")
        second.load_state_dict(first.state_dict())
        second.down.weight.data.neg_()
    both = score(model, stream)
    assert residue_sizes(both) == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert gates_zero(both)[0] == gates_zero(one)[0]
    for layer in residue_layers(model).values():  # one shut gate does not hide the other
        nn.init.zeros_(layer.neutral_residues["default"].block_gate.weight)
    assert gates_zero(score(model, stream))[0] == gates_zero(one)[0]
    assert gates_zero(one)[0] not in (0, 30)


def test_an_extension_that_adds_nothing_forgets_exactly_nothing() -> None:
    found = score(extended(identity=True), text(50))
    assert found.extended_nats == found.backbone_nats
    assert found.kl_nats == 0.0
    assert (found.rise_bits_per_byte, found.rise_percent) == (0.0, 0.0)


def test_backbone_side_is_the_plain_model() -> None:
    model, stream = llama(), text(50)
    plain = score(model, stream, reference=model)
    found = score(extended(), stream)
    assert plain.backbone_nats == plain.extended_nats == found.backbone_nats
    assert found.extended_nats != found.backbone_nats
    assert (plain.num_neutral_tokens, plain.layers) == (None, [])


def test_a_backbone_that_is_known_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stream = extended(), text(50)
    both = score(model, stream, kl=False)
    monkeypatch.setattr("neutral_residues.evaluation.evaluate.as_backbone", None)
    assert score(model, stream, kl=False, backbone_nats={"en": both.backbone_nats}) == both
    with pytest.raises(UserError, match="kl"):
        score(model, stream, kl=True, backbone_nats={"en": both.backbone_nats})


def test_the_kl_divergence_is_measured_where_it_is_asked_for() -> None:
    model, stream = extended(), text(50)
    asked, other = score(model, stream), score(model, stream, kl=False)
    assert other.kl_nats is None
    assert other.kl_nats_per_token is None
    assert asked.model_copy(update={"kl_nats": None}) == other


def test_full_fine_tuning_needs_a_reference() -> None:
    tuned, stream = llama(seed=5), text(50)
    with pytest.raises(UserError, match=r"no backbone to compare with.*reference="):
        score(tuned, stream)
    found = score(tuned, stream, reference=llama())
    assert found.backbone_nats == alone(llama(), stream)
    assert found.extended_nats == alone(tuned, stream)
    assert found.kl_nats is not None
    assert found.kl_nats > 1
    same_model = score(tuned, stream, reference=tuned)
    assert same_model.kl_nats == 0.0


def test_lora_has_both_sides_and_no_gates() -> None:
    model = peft.get_peft_model(
        llama(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    stream = text(50)
    found = score(model, stream)
    assert found.backbone_nats == alone(llama(), stream)
    assert found.extended_nats != found.backbone_nats
    assert (found.num_neutral_tokens, found.layers) == (None, [])


def test_adapter_attached_by_transformers() -> None:
    model, stream = llama(), text(30)
    plain = alone(model, stream)
    model.add_adapter(
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "lora"
    )
    found = score(model, stream)
    assert found.backbone_nats == plain
    assert found.extended_nats == alone(model, stream) != plain


def test_gateless_adapter_has_sizes_but_no_gates() -> None:
    found = score(extended(block_gate="none", layers_to_transform=[1]), text(30))
    assert found.num_neutral_tokens is None
    for layer, number in zip(found.layers, (1, "head"), strict=True):
        assert (layer.layer, layer.gates_zero) == (number, None)
        assert layer.residue_rms > 0


def test_model_is_left_as_it_was() -> None:
    model = extended().train()
    model.get_base_model().lm_head.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    training = {name for name, module in model.named_modules() if module.training}
    score(model, text(30))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable != set()
    assert {name for name, module in model.named_modules() if module.training} == training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(
        layer.residue_hook is None and not layer.disable_adapters
        for layer in residue_layers(model).values()
    )
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()


def test_restored_after_an_error() -> None:
    model = extended().train()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(model, text(30), on_progress=stop)
    assert model.training
    assert all(layer.residue_hook is None for layer in residue_layers(model).values())


def test_autocast_does_not_count() -> None:
    model, stream = extended(), text(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = score(model, stream)
    assert inside == score(model, stream)


# --- what is measured


def test_max_tokens_takes_whole_documents_and_their_bytes() -> None:
    model, stream = extended(), text(10, 12, 7)
    for max_tokens, documents, tokens in (
        (1, 1, 10),
        (10, 1, 10),
        (21, 1, 10),
        (22, 2, 22),
        (28, 2, 22),
        (99, 3, 29),
    ):
        found = score(model, stream, max_tokens=max_tokens)
        assert (found.num_documents, found.num_tokens, found.num_bytes) == (
            documents,
            tokens,
            3 * tokens,
        )
    first = TokenStream(
        "en", "source", stream.tokens[:22], stream.document_ends[:2], stream.document_bytes[:2]
    )
    assert score(model, stream, max_tokens=25) == score(model, first)


def test_tokens_on_disk_of_any_type(tmp_path: Any) -> None:
    model, stream = extended(), text(40)
    expected = score(model, stream)
    for kind in (np.uint16, np.uint32, np.int64):
        stream.tokens.astype(kind).tofile(tmp_path / "tokens.bin")
        mapped = np.memmap(tmp_path / "tokens.bin", kind, mode="r")
        assert (
            score(
                model,
                TokenStream("en", "source", mapped, stream.document_ends, stream.document_bytes),
            )
            == expected
        )


def test_progress_reaches_the_end_of_every_set() -> None:
    seen: list[tuple[str, int, int]] = []
    sets = [text(40), text(10, name="fr", role="target")]
    results = evaluate(
        extended(),
        sets,
        Windows(END, 16, 8, batch_rows=2),
        on_progress=lambda *now: seen.append(now),
    )
    assert seen == [("en", 24, 40), ("en", 40, 40), ("fr", 10, 10)]
    roles = [(name, found.role) for name, found in results.items()]
    assert roles == [("en", "source"), ("fr", "target")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_tokens": 65}, "up to the model's own context, 64"),
        ({"max_tokens": 0}, "max_tokens; got 0"),
        ({"end_of_text": 64}, "another tokenizer"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score(extended(), text(30), **settings)


def test_streams_that_cannot_be_scored() -> None:
    model, stream = extended(), text(30)
    with pytest.raises(UserError, match="en holds no text"):
        score(
            model,
            TokenStream(
                "en",
                "source",
                stream.tokens[:0],
                stream.document_ends[:0],
                stream.document_bytes[:0],
            ),
        )
    stream.tokens[3] = VOCABULARY
    with pytest.raises(UserError, match=r"another tokenizer.*got 64; allowed: below .* 64"):
        score(model, stream)
    with pytest.raises(UserError, match="one name; got en"):
        evaluate(model, [text(5), text(5)], Windows(END, 4, 2))


def test_loss_that_is_not_finite_stops() -> None:
    model = extended()
    model.get_output_embeddings().weight.data[3] = math.nan
    with pytest.raises(UserError, match="the loss on en is not finite"):
        score(model, text(30))
