"""Both sides of the trade-off: against values by hand, and against a loop that scores one token at
a time."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.evaluation.evaluate import as_backbone, evaluate, inference, windows
from neutral_residues.evaluation.metrics import SetScore, TokenSums, learning_share, metrics

VOCABULARY, END = 64, 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Text:
    """A stream in memory: documents of random tokens, each ended by END."""

    name: str
    role: str
    tokens: np.ndarray
    document_ends: np.ndarray
    document_bytes: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))


def text(*document_tokens: int, name: str = "en", role: str = "source", seed: int = 0) -> Text:
    """Documents of so many tokens each (END included) and of three bytes a token."""
    random = np.random.default_rng(seed)
    tokens = random.integers(1, VOCABULARY, sum(document_tokens)).astype(np.uint16)
    ends = np.cumsum(document_tokens).astype(np.int64)
    tokens[ends - 1] = END
    return Text(name, role, tokens, ends, 3 * np.array(document_tokens, dtype=np.int64))


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
        llama(), NeutralResiduesConfig(**({"width": 8, "gate_start": "random"} | config))
    )
    if not identity:
        torch.manual_seed(1)
        for layer in residue_layers(model).values():
            nn.init.normal_(layer.neutral_residues["default"].down.weight, std=0.5)
    return model


def score(model: nn.Module, stream: Text, **settings: Any) -> SetScore:
    settings = {"end_of_text": END, "context_tokens": 16} | settings
    return evaluate(model, [stream], **settings)[0]


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
    stream = text(30, 11, 9)
    found = score(model, stream)
    assert (found.num_tokens, found.num_bytes, found.num_documents) == (50, 150, 3)
    assert found.extended_perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.backbone_perplexity == pytest.approx(VOCABULARY, rel=1e-6)
    assert found.extended_bits_per_byte == pytest.approx(math.log2(VOCABULARY) * 50 / 150, rel=1e-6)
    assert found.kl_nats == 0.0


def rigged() -> Any:
    """Gates that depend on the input token alone: open in layer 0 on even ones, in layer 1 on
    multiples of three."""
    model = extended()
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
    stream = Text("en", "source", tokens, np.array([9]), np.array([20]))
    for context, stride in ((16, 16), (4, 2), (3, 3), (4, 1)):
        found = score(rigged(), stream, context_tokens=context, stride_tokens=stride)
        assert found.gates_zero_by_layer == (4, 6)  # 1 3 5 7, and 1 2 4 5 7 8
        assert found.num_neutral_tokens == 3  # 1 5 7
        assert found.layers == (0, 1)
    neutral = next(m for m in metrics([found]) if m.name == "neutral_tokens")
    assert (neutral.value, neutral.unit, neutral.direction) == (3 / 9, "share", "higher")


def test_residue_sizes_do_not_depend_on_the_windows() -> None:
    model, stream = rigged(), text(30)
    last = list(residue_layers(model).values())[-1]
    nn.init.normal_(last.neutral_residues["default"].down.weight)
    whole = score(model, stream, context_tokens=32).residue_square_sum_by_layer
    assert whole[0] == 0.0
    assert whole[1] > 1.0
    for context, stride in ((8, 4), (5, 1)):
        found = score(model, stream, context_tokens=context, stride_tokens=stride)
        assert found.residue_square_sum_by_layer == pytest.approx(whole, rel=1e-4)


def test_all_tokens_are_neutral_behind_a_shut_gate() -> None:
    model = extended()
    stream = text(20, 17)
    assert score(model, stream).num_neutral_tokens not in (None, 37)
    for layer in residue_layers(model).values():
        nn.init.zeros_(layer.neutral_residues["default"].block_gate.weight)
    found = score(model, stream)
    assert found.num_neutral_tokens == 37
    assert found.gates_zero_by_layer == (37, 37)
    assert found.residue_square_sum_by_layer == (0.0, 0.0)
    assert found.kl_nats == 0.0
    assert found.extended_nats == found.backbone_nats


def test_metrics_by_hand() -> None:
    source = SetScore(
        name="en",
        role="source",
        num_tokens=10,
        num_bytes=40,
        num_documents=1,
        extended_nats=30 * math.log(2),
        backbone_nats=20 * math.log(2),
        kl_nats=1.5,
        num_neutral_tokens=4,
        layers=(1, 3),
        gates_zero_by_layer=(5, 8),
        residue_square_sum_by_layer=(80.0, 0.0),
        hidden=2,
    )
    target = SetScore("fr", "target", 10, 40, 1, 10 * math.log(2), 20 * math.log(2), 2.0, None)
    found = {
        (m.name, m.of, m.set, m.layer): (m.value, m.direction) for m in metrics([source, target])
    }
    expected = {
        ("bits_per_byte", "extended", "en", None): (0.75, "lower"),
        ("bits_per_byte", "backbone", "en", None): (0.5, "lower"),
        ("token_perplexity", "extended", "en", None): (8.0, "lower"),
        ("token_perplexity", "backbone", "en", None): (4.0, "lower"),
        ("forgetting", "difference", "en", None): (0.25, "lower"),
        ("forgetting_percent", "difference", "en", None): (50.0, "lower"),
        ("kl_nats_per_token", "difference", "en", None): (0.15, "lower"),
        ("neutral_tokens", "extended", "en", None): (0.4, "higher"),
        ("gates_zero", "extended", "en", 1): (0.5, "higher"),
        ("gates_zero", "extended", "en", 3): (0.8, "higher"),
        ("residue_rms", "extended", "en", 1): (2.0, "lower"),
        ("residue_rms", "extended", "en", 3): (0.0, "lower"),
        ("bits_per_byte", "extended", "fr", None): (0.25, "lower"),
        ("bits_per_byte", "backbone", "fr", None): (0.5, "lower"),
        ("token_perplexity", "extended", "fr", None): (2.0, "lower"),
        ("token_perplexity", "backbone", "fr", None): (4.0, "lower"),
        ("learning_bits", "difference", "fr", None): (0.25, "higher"),
        ("kl_nats_per_token", "difference", "fr", None): (0.2, "none"),
    }
    assert found.keys() == expected.keys()
    for key, (value, direction) in expected.items():
        assert found[key] == (pytest.approx(value), direction), key


def test_learning_share_by_hand() -> None:
    # The paper's main table: (1.175 - 0.793) / (1.175 - 0.758).
    share = learning_share(
        extended_bits_per_byte=0.793, backbone_bits_per_byte=1.175, finetuned_bits_per_byte=0.758
    )
    assert share == pytest.approx(0.916, abs=5e-4)
    assert (
        learning_share(
            extended_bits_per_byte=1, backbone_bits_per_byte=1, finetuned_bits_per_byte=1
        )
        is None
    )


# --- windows


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 8, 9, 15, 16, 17, 31, 40])
@pytest.mark.parametrize("context", [1, 2, 5, 8, 16])
def test_every_token_is_scored_once_in_windows_of_one_length(num_tokens: int, context: int) -> None:
    for stride in range(1, context + 1):
        plan = list(windows(num_tokens, context_tokens=context, stride_tokens=stride))
        scored = [token for w in plan for token in range(w.scored_from, w.end)]
        assert scored == list(range(num_tokens))
        assert {w.end - w.start for w in plan} == {min(context, num_tokens)}
        for window in plan[1:]:
            assert window.end - window.scored_from <= stride
            assert window.scored_from - window.start >= context - stride


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
    context: int, stride: int
) -> None:
    model, stream = extended(), text(20, 7, 30, 11)
    found = score(model, stream, context_tokens=context, stride_tokens=stride, batch_rows=2)
    sums = found.by_token
    assert sums is not None
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


def test_stride_is_half_of_the_context_by_default() -> None:
    model, stream = extended(), text(40)
    assert score(model, stream) == score(model, stream, stride_tokens=8)
    assert score(model, stream) != score(model, stream, stride_tokens=16)
    assert score(model, text(3), context_tokens=1).num_tokens == 3


# --- batches, chunks, models


def same(a: SetScore, b: SetScore) -> None:
    for name, value in vars(a).items():
        expected = getattr(b, name)
        if isinstance(value, TokenSums):
            for array, other in zip(vars(value).values(), vars(expected).values(), strict=True):
                np.testing.assert_allclose(array, other, rtol=1e-5)
            continue
        if isinstance(value, float) or (
            isinstance(value, tuple) and value and isinstance(value[0], float)
        ):
            expected = pytest.approx(expected, rel=1e-5)
        assert value == expected, name


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
        added.append(float((output - layer.base_layer(arguments[0])).double().square().sum()))

    hooks = [layer.register_forward_hook(note) for layer in residue_layers(model).values()]
    with torch.no_grad():
        model(input_ids=torch.tensor([[END, *stream.tokens[:-1].tolist()]]))
    for hook in hooks:
        hook.remove()
    found = score(model, stream)
    assert found.residue_square_sum_by_layer == pytest.approx(tuple(added), rel=1e-4)
    assert found.hidden == 32


def test_several_active_extensions_count_as_their_sum() -> None:
    model, stream = extended(), text(30)
    one = score(model, stream)
    model.add_adapter("second", NeutralResiduesConfig(width=8, gate_start="random"))
    model.base_model.set_adapter(["default", "second"])
    for layer in residue_layers(model).values():  # the same residue with the other sign
        first, second = layer.adapter("default"), layer.adapter("second")
        second.load_state_dict(first.state_dict())
        second.down.weight.data.neg_()
    both = score(model, stream)
    assert both.residue_square_sum_by_layer == (0.0, 0.0)
    assert both.gates_zero_by_layer[0] == one.gates_zero_by_layer[0]
    for layer in residue_layers(model).values():  # one shut gate does not hide the other
        nn.init.zeros_(layer.neutral_residues["default"].block_gate.weight)
    assert score(model, stream).gates_zero_by_layer[0] == one.gates_zero_by_layer[0]
    assert one.gates_zero_by_layer[0] not in (0, 30)


def test_an_extension_that_adds_nothing_forgets_exactly_nothing() -> None:
    found = score(extended(identity=True), text(50))
    assert found.extended_nats == found.backbone_nats
    assert found.kl_nats == 0.0
    forgetting = [m.value for m in metrics([found]) if m.name.startswith("forgetting")]
    assert forgetting == [0.0, 0.0]


def test_backbone_side_is_the_plain_model() -> None:
    stream = text(50)
    plain = score(llama(), stream, backbone=False)
    found = score(extended(), stream)
    assert found.backbone_nats == plain.extended_nats
    assert found.extended_nats != plain.extended_nats
    assert (plain.backbone_nats, plain.kl_nats, plain.num_neutral_tokens, plain.layers) == (
        None,
        None,
        None,
        (),
    )
    assert {m.of for m in metrics([plain])} == {"extended"}


def test_only_one_side() -> None:
    model, stream = extended(), text(50)
    both, one = score(model, stream), score(model, stream, backbone=False)
    assert (one.extended_nats, one.num_neutral_tokens) == (
        both.extended_nats,
        both.num_neutral_tokens,
    )
    assert one.backbone_bits_per_byte is None


def test_full_fine_tuning_needs_a_reference() -> None:
    tuned, stream = llama(seed=5), text(50)
    with pytest.raises(UserError, match=r"no backbone to compare with.*reference="):
        score(tuned, stream)
    found = score(tuned, stream, reference=llama())
    assert found.backbone_nats == score(llama(), stream, backbone=False).extended_nats
    assert found.extended_nats == score(tuned, stream, backbone=False).extended_nats
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
    assert found.backbone_nats == score(llama(), stream, backbone=False).extended_nats
    assert found.extended_nats != found.backbone_nats
    assert (found.num_neutral_tokens, found.layers, found.residue_square_sum_by_layer) == (
        None,
        (),
        (),
    )


def test_adapter_attached_by_transformers() -> None:
    model, stream = llama(), text(30)
    plain = score(model, stream, backbone=False)
    model.add_adapter(
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "lora"
    )
    found = score(model, stream)
    assert found.backbone_nats == plain.extended_nats
    assert (
        found.extended_nats
        == score(model, stream, backbone=False).extended_nats
        != plain.extended_nats
    )


def test_gateless_adapter_has_sizes_but_no_gates() -> None:
    found = score(extended(block_gate="none", layers_to_transform=[1]), text(30))
    assert found.num_neutral_tokens is None
    assert (found.layers, found.gates_zero_by_layer) == ((1,), ())
    assert found.residue_square_sum_by_layer[0] > 0
    assert [m.layer for m in metrics([found]) if m.name == "residue_rms"] == [1]


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


def test_frozen_extension_stays_frozen() -> None:
    model = extended()
    model.requires_grad_(False)
    with as_backbone(model):
        pass
    assert not any(p.requires_grad for p in model.parameters())


def test_restored_after_an_error() -> None:
    model = extended().train()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(model, text(30), on_progress=stop)
    assert model.training
    assert all(layer.residue_hook is None for layer in residue_layers(model).values())


def test_autocast_is_off_within() -> None:
    model, stream = extended(), text(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(model, stream) == score(model, stream)
        with inference(model):
            assert not torch.is_autocast_enabled("cpu")
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
    first = Text(
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
            score(model, Text("en", "source", mapped, stream.document_ends, stream.document_bytes))
            == expected
        )


def test_progress_reaches_the_end_of_every_set() -> None:
    seen: list[tuple[str, int, int]] = []
    sets = [text(40), text(10, name="fr", role="target")]
    scores = evaluate(
        extended(),
        sets,
        end_of_text=END,
        context_tokens=16,
        batch_rows=2,
        on_progress=lambda *now: seen.append(now),
    )
    assert seen == [("en", 24, 40), ("en", 40, 40), ("fr", 10, 10)]
    assert [(s.name, s.role) for s in scores] == [("en", "source"), ("fr", "target")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride_tokens": 0}, "stride_tokens; got 0"),
        ({"stride_tokens": 17}, "stride_tokens; got 17; allowed: 1 to context_tokens"),
        ({"context_tokens": 0}, "context_tokens; got 0"),
        ({"context_tokens": 65}, "up to the model's own context, 64"),
        ({"batch_rows": 0}, "batch_rows; got 0"),
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
            Text(
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
        evaluate(model, [text(5), text(5)], end_of_text=END, context_tokens=4)


def test_loss_that_is_not_finite_stops() -> None:
    model = extended()
    model.get_output_embeddings().weight.data[3] = math.nan
    with pytest.raises(UserError, match="the loss on en is not finite"):
        score(model, text(30))
