"""Two continuations of one prompt, from one copy of the weights."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neutral_residues import NeutralResiduesConfig, UserError, residue_layers
from neutral_residues.evaluation.generate import generate_both
from one_prompt import continue_one

VOCABULARY = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word w1 ... w63, and an end-of-text token; no padding token."""
    words = {"<end>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=32,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def extended(*, task_type: str | None = None) -> Any:
    model = peft.get_peft_model(llama(), NeutralResiduesConfig(width=8, task_type=task_type))
    torch.manual_seed(1)
    for layer in residue_layers(model).values():
        nn.init.normal_(layer.neutral_residues["default"].down.weight, std=0.5)
    return model


@torch.no_grad()
def most_probable(model: nn.Module, tokens: list[int], num_new: int) -> str:
    """Greedy continuation, one forward pass for each token."""
    new: list[int] = []
    for _ in range(num_new):
        new.append(int(model(input_ids=torch.tensor([tokens + new])).logits[0, -1].argmax()))
        if new[-1] == 0:
            break
    return "".join(f" w{token}" for token in new if token != 0)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_greedy_is_the_most_probable_token_of_each_side(
    tokenizer: Any, task_type: str | None
) -> None:
    model = extended(task_type=task_type)
    sample = continue_one(model, tokenizer, "w5 w9 w12", max_new_tokens=8)
    assert sample.prompt == "w5 w9 w12"
    assert sample.backbone == most_probable(llama(), [5, 9, 12], 8)
    assert sample.extended == most_probable(model, [5, 9, 12], 8)
    assert sample.backbone != sample.extended


TEMPLATE = "{{ 'w1 ' }}{% for m in messages %}{{ m['content'] }}{% endfor %}{{ ' w2' }}"


def test_a_chat_prompt_goes_through_the_template_once(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no chat template"):
        continue_one(extended(), tokenizer, "w5", max_new_tokens=4, chat=True)
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    answer = continue_one(extended(), tokenizer, "w5", max_new_tokens=4, chat=True)
    plain = continue_one(extended(), tokenizer, "w1 w5 w2", max_new_tokens=4)
    assert (answer.prompt, answer.backbone) == ("w5", plain.backbone)
    assert answer.extended == plain.extended
    with pytest.raises(UserError, match="the prompt is empty"):
        continue_one(extended(), tokenizer, " ", max_new_tokens=4, chat=True)


def test_both_sides_get_the_same_luck(tokenizer: Any) -> None:
    model = peft.get_peft_model(llama(), NeutralResiduesConfig(width=8))  # adds nothing yet
    samples = [
        continue_one(model, tokenizer, "w5 w9", max_new_tokens=12, temperature=1.0, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert all(sample.backbone == sample.extended for sample in samples)
    assert samples[0] == samples[1] != samples[2]


def test_sampling_from_a_vanishing_share_is_greedy(tokenizer: Any) -> None:
    model = extended()
    greedy = continue_one(model, tokenizer, "w5 w9", max_new_tokens=8)
    for sampled in ({"top_p": 1e-6}, {"temperature": 1e-4}):
        settings = {"temperature": 1.0, "seed": 7} | sampled
        assert continue_one(model, tokenizer, "w5 w9", max_new_tokens=8, **settings) == greedy


def test_fine_tuned_model_beside_its_reference(tokenizer: Any) -> None:
    tuned = llama(seed=4)
    with pytest.raises(UserError, match="no backbone"):
        continue_one(tuned, tokenizer, "w5", max_new_tokens=4)
    sample = continue_one(tuned, tokenizer, "w5", max_new_tokens=4, reference=llama())
    assert sample.backbone == most_probable(llama(), [5], 4)
    assert sample.extended == most_probable(tuned, [5], 4)


def test_stops_at_the_end_of_text_and_leaves_it_out(tokenizer: Any) -> None:
    model = extended()
    nn.init.zeros_(
        model.get_output_embeddings().weight
    )  # all alike, so the most probable is the first: end of text
    assert continue_one(model, tokenizer, "w5", max_new_tokens=8).extended == ""


@pytest.mark.parametrize("end", ["the model's second", "the tokenizer's", "a document's"])
def test_stops_at_every_end_token(end: str) -> None:
    model = extended()
    written = most_probable(model, [5, 9], 4).split()
    ends = {"eos_token": "w1", "extra_special_tokens": ["</s>"]}
    if end == "the tokenizer's":
        ends["eos_token"] = written[2]
    words = {"<end>": 0} | {f"w{number}": number for number in range(1, VOCABULARY)}
    if end == "a document's":
        number = words.pop(written[2])
        words["</s>"] = number
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    chat = PreTrainedTokenizerFast(tokenizer_object=inner, **ends)
    if end == "the model's second":
        model.generation_config.eos_token_id = [0, int(written[2][1:])]
    sample = continue_one(model, chat, "w5 w9", max_new_tokens=4)
    assert sample.extended.split() == written[: 3 if end == "the model's second" else 2]


def test_no_warning_and_nothing_changed_whatever_the_model_suggests(
    tokenizer: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = extended().train()
    plain = continue_one(model, tokenizer, "w5 w9", max_new_tokens=8)
    inner = model.get_base_model()
    own = GenerationConfig(
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        top_k=7,
        max_length=20,
        repetition_penalty=3.0,
        eos_token_id=[0],
    )
    inner.generation_config = own
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    random_before = torch.get_rng_state()
    assert continue_one(model, tokenizer, "w5 w9", max_new_tokens=8) == plain
    continue_one(model, tokenizer, "w5 w9", max_new_tokens=8, temperature=0.7, top_p=0.5)
    assert caplog.records == []
    assert inner.generation_config is own
    assert torch.equal(torch.get_rng_state(), random_before)
    assert model.training
    assert all(not layer.disable_adapters for layer in residue_layers(model).values())


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_empty_prompt(tokenizer: Any, prompt: str) -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        continue_one(extended(), tokenizer, prompt, max_new_tokens=4)


def test_prompt_longer_than_the_context(tokenizer: Any) -> None:
    model = extended()
    assert continue_one(model, tokenizer, "w5 " * 28, max_new_tokens=4).extended
    for words, new in ((29, 4), (100, 1)):
        with pytest.raises(
            UserError, match=rf"context; got {words} \+ {new} tokens; allowed: up to 32"
        ):
            continue_one(model, tokenizer, "w5 " * words, max_new_tokens=new)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature; got -0.1"),
        ({"temperature": math.nan}, "temperature; got nan"),
        ({"temperature": math.inf}, "temperature; got inf"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p; got 0.0"),
        ({"temperature": 1.0, "top_p": 1.1}, "top_p; got 1.1"),
        ({"top_p": 0.5}, "no effect at temperature 0"),
        ({"max_new_tokens": 0}, "max_new_tokens; got 0"),
    ],
)
def test_settings_out_of_range(tokenizer: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        continue_one(extended(), tokenizer, "w5", **{"max_new_tokens": 4} | settings)


def test_of_a_batch_each_stops_where_it_would_alone(tokenizer: Any) -> None:
    model, prompts = extended(), ["w5 w9 w12", "w7", "w3 w3"]
    end = continue_one(model, tokenizer, "w7", max_new_tokens=8).extended.split()[2]
    options: dict[str, Any] = {"max_new_tokens": 8, "end_of_text": int(end.removeprefix("w"))}
    alone = [continue_one(model, tokenizer, prompt, **options) for prompt in prompts]
    assert generate_both(model, tokenizer, prompts, **options) == alone
    assert len({len(sample.extended.split()) for sample in alone}) > 1
