"""Trains the backbone of the demo: a Llama of 3,049,920 weights on English text only.

    python recipes/demo_backbone.py en.train.jsonl.gz OUTPUT_FOLDER

A byte-level BPE tokenizer of 2,048 tokens is trained on the same text. Training: 2,000 steps of
32 x 128 tokens (8.2 M tokens), AdamW with betas (0.9, 0.95) and weight decay 0.1, learning rate
3e-3 with 100 warm-up steps and cosine decay to a tenth, gradient clipping at 1.0, bfloat16
autocast, seed 0.
"""

import argparse
import gzip
import json
from pathlib import Path

import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_with_min_lr_schedule_with_warmup,
)

END_OF_TEXT = "<|eos|>"
BLOCK_TOKENS, BATCH_ROWS = 128, 32


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2048, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=1024,
    )


def make_blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    stream = [
        token for ids in tokenizer(texts)["input_ids"] for token in [*ids, tokenizer.eos_token_id]
    ]
    num_blocks = len(stream) // BLOCK_TOKENS
    return torch.tensor(stream[: num_blocks * BLOCK_TOKENS]).view(num_blocks, BLOCK_TOKENS)


def make_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        vocab_size=2048,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, blocks: torch.Tensor, *, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_with_min_lr_schedule_with_warmup(optimizer, 100, steps, min_lr_rate=0.1)
    order = torch.randperm(len(blocks))
    for step in track(range(steps), description="training"):
        rows = order[torch.arange(step * BATCH_ROWS, (step + 1) * BATCH_ROWS) % len(order)]
        input_ids = blocks[rows]
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), input_ids[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with gzip.open(arguments.text, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    tokenizer = make_tokenizer(texts)
    model = make_model()
    train(model, make_blocks(texts, tokenizer), steps=arguments.steps)
    model.to(torch.bfloat16).save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
