"""A backbone folder, texts and a run file small enough to train in a second."""

import json
import random
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neutral_residues.config.run import make_run
from neutral_residues.run import extend
from neutral_residues.training.progress import RunProgress

END_OF_TEXT = 256
SOURCE_WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "to", "sea"]
TARGET_WORDS = [
    "le",
    "chat",
    "est",
    "assis",
    "sur",
    "un",
    "tapis",
    "et",
    "voit",
    "chien",
    "vers",
    "la",
    "mer",
]
UKRAINIAN_WORDS = ["кіт", "сидів", "на", "килимі", "і", "бачив", "собаку", "біжи", "до", "моря"]
NUM_NEW_TOKENS = 12
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\n' + m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""That of Qwen and SmolLM2, but for their system prompts."""


def byte_tokenizer(eos_token: str | None = "<eot>", **settings: Any) -> PreTrainedTokenizerFast:
    """A token for each of 256 bytes and one for the end of a text; settings are Transformers'."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={char: i for i, char in enumerate([*alphabet, "<eot>"])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos_token, **settings)


def make_backbone(folder: Path, *, eos_token: str | None = "<eot>", **changes: Any) -> Path:
    """A random Llama over bytes, saved with its tokenizer."""
    torch.manual_seed(0)
    settings = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 260,
        "max_position_embeddings": 64, "bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    byte_tokenizer(eos_token).save_pretrained(folder)
    return folder


def make_text(path: Path, words: list[str], *, documents: int = 40, seed: int = 0) -> Path:
    generator = random.Random(seed)
    texts = (" ".join(generator.choices(words, k=30)) for _ in range(documents))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def run_values(folder: Path, **training: Any) -> dict[str, Any]:
    """Settings of a run in `folder`, as a run file holds them; makes backbone and texts on the
    first call."""
    backbone = folder / "backbone"
    if not backbone.exists():
        make_backbone(backbone)
        make_text(folder / "en.jsonl", SOURCE_WORDS, seed=1)
        make_text(folder / "fr.jsonl", TARGET_WORDS, seed=2)
    corpora = [("fr", "target", "fr.jsonl"), ("en", "source", "en.jsonl")]
    return {
        "model": str(backbone),
        "output": str(folder / "run"),
        "data": {
            "train": [
                {"name": name, "role": role, "path": str(folder / file)}
                for name, role, file in corpora
            ],
            "source_share": 0.25,
            "held_out_share": 0.2,
            "block_tokens": 32,
            "workers": 0,
            "cache": str(folder / "cache"),
        },
        "training": {
            "steps": 8, "batch_rows": 4, "accumulation": 2, "warmup_steps": 2, "log_every": 2,
            "evaluate_every": 4, "save_every": 3,
        }
        | training,
        "evaluation": {"tokens_while_training": 400},
    }  # fmt: skip


def several_values(folder: Path, **training: Any) -> dict[str, Any]:
    """Settings of a short run with two targets, each with an extension of its own."""
    values = run_values(folder, **training)
    uk = make_text(folder / "uk.jsonl", UKRAINIAN_WORDS, seed=4)
    values["data"]["train"].append({"name": "uk", "role": "target", "path": str(uk)})
    return values | {"residues": {"per_target": True}}


def beside_values(folder: Path, **training: Any) -> dict[str, Any]:
    """Settings of a short run beside the extension of another, which the first call trains."""
    values = run_values(folder, **training)
    first = folder / "first"
    if not first.exists():
        extend(make_run(values | {"output": str(first)}), progress=RunProgress(quiet=True))
    uk = make_text(folder / "uk.jsonl", UKRAINIAN_WORDS, seed=4)
    values["data"]["train"].append({"name": "uk", "role": "target", "path": str(uk)})
    return values | {"beside": {"first": str(first)}, "label": "second"}


def chat_values(folder: Path, **training: Any) -> dict[str, Any]:
    """Settings of a short run on chats of both languages, with a chat model as backbone."""
    if not (folder / "backbone").exists():
        make_backbone(folder / "backbone", vocab_size=264)
        special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
        tokenizer = byte_tokenizer("<|im_end|>", extra_special_tokens=special)
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.save_pretrained(folder / "backbone")
        make_chats(folder / "en.jsonl", SOURCE_WORDS, seed=1)
        make_chats(folder / "fr.jsonl", TARGET_WORDS, seed=2)
    values = run_values(folder, **training)
    for corpus in values["data"]["train"]:
        corpus["chat"] = True
    return values


def make_chats(path: Path, words: list[str], *, chats: int = 60, seed: int = 0) -> Path:
    generator = random.Random(seed)
    lines = []
    for _ in range(chats):
        said = [" ".join(generator.choices(words, k=6)) for _ in range(2)]
        pairs = zip(("user", "assistant"), said, strict=True)
        chat = [{"role": role, "content": content} for role, content in pairs]
        lines.append(json.dumps({"messages": chat}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


BUDGETS = {
    "lora": 0.2043,
    "lora-embeddings": 0.2043,
    "rslora": 0.2043,
    "dora": 0.1905,
    "disel": 0.2165,
    "osf": 0.2069,
    "block-expansion": 0.2764,
}
"""What whole ranks and layers meet on so small a backbone; the others meet 0.20."""
SCALED = {"wise-ft": "finetune", "lora-scaled": "lora", "adapter-scaled": "adapter"}


def method_values(folder: Path, method: str, **training: Any) -> dict[str, Any]:
    """Settings of a short run of that method; for one that scales, what it scales must have been
    run."""
    values = run_values(folder, **training) | {"method": method, "output": str(folder / method)}
    if method in SCALED:
        values["scaling"] = {"trained": str(folder / SCALED[method]), "share": 0.5}
    trained = SCALED.get(method, method)
    return values | ({"budget": BUDGETS[trained]} if trained in BUDGETS else {})


def vocabulary_values(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a short run with a vocabulary of its own, for a target that has no tokens."""
    values = run_values(folder, steps=6, learning_rate=0.01)
    make_text(folder / "fr.jsonl", UKRAINIAN_WORDS, seed=2)
    return values | {"vocabulary": {"size": NUM_NEW_TOKENS}, "budget": 1.0} | changes


def write_run(folder: Path, values: dict[str, Any], name: str = "run.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
