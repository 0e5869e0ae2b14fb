"""Documents that a backbone writes itself, as a source corpus: replay for a model whose training
text is not at hand.

    python recipes/self_replay.py MODEL data/self.train.jsonl.gz --documents 2000

Sampled at temperature 1 from the whole vocabulary, each from the end-of-text token on until the
model ends it or it is as long as `--tokens`. One JSON line each: `text`, and in `source` the model,
temperature and seed. Name the file in a run file as a corpus with `role: source`.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from neutral_residues.backbone import context_length, load_backbone, load_tokenizer, pick_device
from neutral_residues.data.tokenise import end_of_text_id

TEMPERATURE = 1.0


@torch.no_grad()
def documents(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    max_tokens: int,
    batch_rows: int = 32,
    seed: int = 0,
) -> Iterator[str]:
    """`count` texts that are not empty, each of at most `max_tokens` tokens."""
    set_seed(seed)
    end_of_text = end_of_text_id(tokenizer)
    start = torch.full((batch_rows, 1), end_of_text, device=model.device)
    while count > 0:
        rows = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_tokens,
            eos_token_id=end_of_text,
            pad_token_id=end_of_text,
        )
        texts = (tokenizer.decode(row, skip_special_tokens=True).strip() for row in rows)
        written = [text for text in texts if text][:count]
        count -= len(written)
        yield from written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model = load_backbone(arguments.model, dtype=torch.float32).to(pick_device()).eval()
    longest = context_length(model.config) or arguments.tokens + 1
    source = f"{Path(arguments.model).name}, temperature {TEMPERATURE:g}, seed {arguments.seed}"
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(arguments.file, "wt", encoding="utf-8") as file:
        for text in documents(
            model,
            load_tokenizer(arguments.model),
            count=arguments.documents,
            max_tokens=min(arguments.tokens, longest - 1),
            seed=arguments.seed,
        ):
            file.write(json.dumps({"text": text, "source": source}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
