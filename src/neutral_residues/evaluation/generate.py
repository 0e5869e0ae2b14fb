"""How the backbone and the extended model continue the same prompt, from one copy of the weights.

    generate_both(model, tokenizer, "Le chat", max_new_tokens=40)

Both models get the same prompt and the same seed, so with closed gates they write the same text.
Greedy at temperature 0, sampled above it, and nothing else: the model's own generation settings
(repetition penalty, top-k, ...) do not count, only its end tokens. Those of a chat model end turns,
so the token that ends a document stops it too. The generation itself is Transformers'. The model
and PyTorch's random numbers are left as they were.
"""

import math
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
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
    reference: nn.Module | None = None,
    backbone_tokenizer: PreTrainedTokenizerBase | None = None,
    end_of_text: int | None = None,
) -> Sample:
    """Continue `prompt` with the backbone and with the extended model; what each adds is returned
    without special tokens.

    Args:
        model: the extended model: PEFT's, or one that `reference` is given for.
        temperature: 0 takes the most probable token each time; above 0 samples.
        top_p: sample only among the most probable tokens that have this probability together.
        seed: of the sampling, the same for both.
        chat: give the prompt as the user's message in the tokenizer's chat template.
        reference: the backbone, where switching the extension off does not give it (full
            fine-tuning).
        backbone_tokenizer: where the extended model has a vocabulary of its own.
        end_of_text: the token that ends a document; default: see `end_of_text_id`.

    Raises:
        UserError: for an empty prompt, one that does not fit the model's context, a tokenizer
            without a chat template, or a setting out of range.
    """
    ends = end_tokens(model, tokenizer, end_of_text)
    pad = tokenizer.pad_token_id
    settings = generation_settings(ends, pad, max_new_tokens, temperature, top_p)
    tokenizers = backbone_tokenizer or tokenizer, tokenizer
    own_1T, prompt_1T = (
        check_prompt(model.config, it, prompt, max_new_tokens=max_new_tokens, chat=chat)
        for it in tokenizers
    )
    with inference(model, reference):
        with as_backbone(model, reference) as backbone:
            backbone_text = _continue(backbone, tokenizers[0], own_1T, settings, seed)
        extended_text = _continue(model, tokenizer, prompt_1T, settings, seed)
    return Sample(prompt=prompt, backbone=backbone_text, extended=extended_text)


def check_prompt(
    config: PretrainedConfig,
    tokenizer: Any,
    prompt: str,
    *,
    max_new_tokens: int,
    chat: bool = False,
) -> Tensor:
    """The tokens of a prompt, (1, T); a UserError if it is empty, or does not fit the model's
    context with what is to be added."""
    if chat:
        prompt_1T = _in_chat_template(tokenizer, prompt)
    else:
        tokens = tokenizer(prompt, return_tensors="pt", truncation=False, verbose=False)
        prompt_1T = tokens["input_ids"].long()
    if not prompt.strip() or prompt_1T.shape[1] == 0:
        raise UserError("the prompt is empty", do="give some text to continue")
    limit = context_length(config)
    if limit is not None and prompt_1T.shape[1] + max_new_tokens > limit:
        what = "prompt and max_new_tokens together are longer than the model's context"
        got = f"{prompt_1T.shape[1]} + {max_new_tokens} tokens"
        do = "shorten the prompt or lower max_new_tokens"
        raise UserError(what, got=got, allowed=f"up to {limit}", do=do)
    return prompt_1T


def end_tokens(model: Any, tokenizer: Any, end_of_text: int | None) -> list[int]:
    """Ids of every token that ends a turn or a document; `end_of_text` as in `generate_both`."""
    own = model.generation_config.eos_token_id  # a chat model may have several
    if end_of_text is None:
        end_of_text = find_end_of_text(tokenizer)
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, end_of_text]
    return list(dict.fromkeys(end for end in ends if end is not None))


def _in_chat_template(tokenizer: Any, prompt: str) -> Tensor:
    options = {"chat_template": chat_template(tokenizer), "add_generation_prompt": True}
    options |= {"return_tensors": "pt", "return_dict": True}
    messages = [{"role": "user", "content": prompt}]
    encoded = apply_template(tokenizer, messages, **options)
    tokens_1T: Tensor = encoded["input_ids"]
    return tokens_1T


def generation_settings(
    ends: list[int], pad: int | None, max_new_tokens: int, temperature: float, top_p: float
) -> GenerationConfig:
    """What `generate_both` says, and nothing of the model's own settings; a UserError for one that
    is out of range."""
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
    model: Any, tokenizer: Any, prompt_1T: Tensor, settings: GenerationConfig, seed: int
) -> str:
    """What `model` adds to the prompt."""
    tokens_1T = continued(model, prompt_1T, torch.ones_like(prompt_1T), settings, seed)
    # Both are decoded and the prompt cut off: a token's own text can depend on those before it.
    both = (prompt_1T, tokens_1T)
    given, whole = (tokenizer.decode(tokens[0], skip_special_tokens=True) for tokens in both)
    return str(whole[len(given) :])


def continued(
    model: Any, prompts_BT: Tensor, mask_BT: Tensor, settings: GenerationConfig, seed: int
) -> Tensor:
    """Prompts with what `model` adds to them, (B, T + new); the same for the same seed.

    Args:
        mask_BT: 0 at padding, on the left, else 1.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    device = next(model.parameters()).device
    accelerators = [] if device.type == "cpu" else [device]
    # Transformers mixes the model's own settings into those that it is given.
    ours = temporarily([inner], "generation_config", settings)
    with torch.random.fork_rng(devices=accelerators, device_type=device.type), ours:
        torch.manual_seed(seed)
        tokens_BT: Tensor = inner.generate(
            input_ids=prompts_BT.to(device),
            attention_mask=mask_BT.to(device),
            generation_config=settings,
        )
    return tokens_BT
