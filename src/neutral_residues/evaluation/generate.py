"""Continues the same prompts with the backbone and with the extended model, from one copy of the
weights.

    generate_both(model, tokenizer, ["Le chat"], max_new_tokens=40)

Both models get the same batch and the same seed, so that with closed gates they generate the same
text. Decoding is greedy at temperature 0 and sampled above it. Of the model's generation config
only the end tokens are used, not the repetition penalty, top-k and so on. The end tokens of a chat
model end turns; the token that ends a document stops the generation too. Transformers' `generate`
does the work. The state of the model and of PyTorch's random generators is restored.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from neutral_residues.backbone import context_length
from neutral_residues.data.chat import apply_template, chat_template
from neutral_residues.data.tokenise import find_end_of_text
from neutral_residues.errors import UserError
from neutral_residues.evaluation.inference import as_backbone, inference
from neutral_residues.results.record import Sample
from neutral_residues.tuner.routing import temporarily


def generate_both(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
    reference: nn.Module | None = None,
    backbone_tokenizer: PreTrainedTokenizerBase | None = None,
    end_of_text: int | None = None,
) -> list[Sample]:
    """Continue each of `prompts` with the backbone and with the extended model, in one batch per
    model. The continuations are returned without prompts and special tokens.

    Args:
        model: the extended model: a PEFT model, or any model if `reference` is given.
        temperature: 0 for greedy decoding, else the sampling temperature.
        top_p: sample from the most probable tokens whose probabilities add up to `top_p`.
        seed: seed of the sampling, the same for both models.
        chat: use each prompt as the user message in the tokenizer's chat template.
        reference: the backbone, if disabling the extension does not give it (full fine-tuning).
        backbone_tokenizer: the backbone's tokenizer, if the extended model has new tokens.
        end_of_text: id of the token that ends a document; default: see `find_end_of_text`.

    Raises:
        UserError: for an empty prompt, one that does not fit the model's context, a tokenizer
            without a chat template, or a setting out of range.
    """
    ends = end_tokens(model, tokenizer, end_of_text)
    pad = tokenizer.pad_token_id
    settings = generation_settings(ends, pad, max_new_tokens, temperature, top_p)
    tokenizers = backbone_tokenizer or tokenizer, tokenizer
    own, extended = (
        [
            check_prompt(model.config, it, prompt, max_new_tokens=max_new_tokens, chat=chat)
            for prompt in prompts
        ]
        for it in tokenizers
    )
    with inference(model, reference):
        with as_backbone(model, reference) as backbone:
            by_backbone = _continue(backbone, tokenizers[0], own, settings, seed)
        by_extended = _continue(model, tokenizer, extended, settings, seed)
    texts = zip(prompts, by_backbone, by_extended, strict=True)
    return [Sample(prompt=it, backbone=one, extended=other) for it, one, other in texts]


def check_prompt(
    config: PretrainedConfig,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int,
    chat: bool = False,
) -> list[int]:
    """The token ids of a prompt. Raises a UserError if it is empty, or longer than the model's
    context minus `max_new_tokens`."""
    if chat:
        tokens = _in_chat_template(tokenizer, prompt)
    else:
        tokens = tokenizer(prompt, truncation=False, verbose=False)["input_ids"]
    if not prompt.strip() or not tokens:
        raise UserError("the prompt is empty", do="give some text to continue")
    limit = context_length(config)
    if limit is not None and len(tokens) + max_new_tokens > limit:
        what = "prompt and max_new_tokens together are longer than the model's context"
        got = f"{len(tokens)} + {max_new_tokens} tokens"
        do = "shorten the prompt or lower max_new_tokens"
        raise UserError(what, got=got, allowed=f"up to {limit}", do=do)
    return list(tokens)


def end_tokens(model: Any, tokenizer: Any, end_of_text: int | None) -> list[int]:
    """Ids of all tokens that end a turn or a document; `end_of_text` as in `generate_both`."""
    own = model.generation_config.eos_token_id  # a chat model may have several
    if end_of_text is None:
        end_of_text = find_end_of_text(tokenizer)
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, end_of_text]
    return list(dict.fromkeys(end for end in ends if end is not None))


def _in_chat_template(tokenizer: Any, prompt: str) -> list[int]:
    options = {"chat_template": chat_template(tokenizer), "add_generation_prompt": True}
    messages = [{"role": "user", "content": prompt}]
    encoded = apply_template(tokenizer, messages, return_dict=True, **options)
    tokens: list[int] = encoded["input_ids"]
    return tokens


def generation_settings(
    ends: list[int], pad: int | None, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    """The generation config for `generate_both`. Raises a UserError for a setting out of range."""
    if max_new_tokens < 1:
        raise UserError("max_new_tokens", got=max_new_tokens, allowed="1 or more")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise UserError("temperature", got=temperature, allowed="0 (greedy) or a number above it")
    if not 0 < top_p <= 1:
        raise UserError("top_p", got=top_p, allowed="above 0, up to 1")
    if temperature == 0 and top_p < 1:
        do = "set a temperature, or leave top_p at 1"
        raise UserError("top_p has no effect at temperature 0", got=top_p, do=do)
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if pad is None and ends else pad,
        **sampling,
    )


def _continue(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], settings: GenerationConfig, seed: int
) -> list[str]:
    """The text with which `model` continues each prompt."""
    texts = []
    for prompt, tokens in zip(prompts, continued(model, prompts, settings, seed), strict=True):
        # The continuation is not decoded alone: a token's text can depend on those before it.
        given, whole = (tokenizer.decode(it, skip_special_tokens=True) for it in (prompt, tokens))
        texts.append(str(whole[len(given) :]))
    return texts


def continued(
    model: Any, prompts: Sequence[list[int]], settings: GenerationConfig, seed: int
) -> list[list[int]]:
    """Token ids of each prompt and its continuation by `model`, up to and including an end token.
    Deterministic for a given batch and seed."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(model.parameters()).device
    longest, fill = max(map(len, prompts)), settings.pad_token_id or 0
    missing = [longest - len(prompt) for prompt in prompts]
    rows = [[fill] * n + prompt for n, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * n + [1] * len(prompt) for n, prompt in zip(missing, prompts, strict=True)]
    accelerators = [] if device.type == "cpu" else [device]
    # Transformers would fill unset options from the model's own generation config.
    ours = temporarily([inner], "generation_config", settings)
    with torch.random.fork_rng(devices=accelerators, device_type=device.type), ours:
        torch.manual_seed(seed)
        tokens_BT: Tensor = inner.generate(
            input_ids=torch.tensor(rows, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
        )
    new = (row[longest:] for row in tokens_BT.tolist())
    ends = set(settings.eos_token_id or ())
    return [prompt + _up_to(ends, tokens) for prompt, tokens in zip(prompts, new, strict=True)]


def _up_to(ends: set[int], tokens: list[int]) -> list[int]:
    """The tokens up to and including the first end token; those after it are padding."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: end + 1]
