"""Small texts in two scripts, with words that share letters and signs; tokenizers for them."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

ENGLISH, UKRAINIAN, FRENCH = (
    text.split()
    for text in (
        "the cat saw a model of the café on the mat , and – the dog said : hello there , cat .",
        "кіт сидить на килимі , а пес бачить кота й сказав : добрий день – « кіт » ґанок .",
        "le chat était là , où la mère de l'élève a été : quelle journée , le café « fermé » !",
    )
)


def documents(words: list[str], *, number: int = 40, seed: int = 0) -> list[str]:
    """Words drawn at random, 25 a document."""
    generator = random.Random(seed)
    return [" ".join(generator.choices(words, k=25)) for _ in range(number)]


def write_texts(path: Path, texts: list[str]) -> None:
    """A corpus in a .jsonl file."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def with_model(tokenizer: PreTrainedTokenizerBase, **settings: object) -> PreTrainedTokenizerBase:
    """The tokenizer with other settings of its model."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"] |= settings
    backend = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tokenizer.eos_token)


PLAIN = [letter for letter in sorted(set("".join(UKRAINIAN))) if letter not in "«ґ–"]
"""Ukrainian letters that a SentencePiece-like tokenizer knows; it has the others as bytes."""
SENTENCEPIECE_KINDS = ["no pre-tokeniser", "metaspace", "metaspace, not split"]


def sentencepiece_like(kind: str) -> PreTrainedTokenizerBase:
    """As Llama 2: a sign for spaces, bytes for characters that it does not know."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False, initial_alphabet=PLAIN)
    learnt.train_from_iterator(documents(ENGLISH), trainer)
    model = json.loads(learnt.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    merges = [tuple(merge) for merge in model["merges"]]
    vocabulary = {token: id for id, token in enumerate(dict.fromkeys(tokens))}
    options = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))
    if kind == "no pre-tokeniser":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        split = kind == "metaspace"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=split)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)
