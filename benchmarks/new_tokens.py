"""Measures the time of `generate` for the same target text with and without new tokens.

    python benchmarks/new_tokens.py recipes/corpora/ukrainian.yaml vocabulary.size=4000
        [--output FILE.json]

`generate` is forced to write held-out text of the run's first target set, in pieces of
`--piece-bytes`, so that all models write the same bytes: the backbone and the run's extension in
the backbone's tokens, and the extension in new tokens. They take turns at every piece. The
extension is not trained: its gates are open, as they are on target text, and times do not depend on
other weights.
"""

import argparse
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from models import finished, in_turns, timed
from neutral_residues.config.run import RunConfig, VocabularySettings, load_run
from neutral_residues.data.documents import iter_documents
from neutral_residues.training.models import backbone_of
from neutral_residues.training.setup import Setup

BACKBONE, WITHOUT, WITH = "backbone", "without", "new tokens"


class Given(LogitsProcessor):
    """Logits processor that allows only the next token of a given text."""

    def __init__(self, ids_1T: Tensor) -> None:
        self.ids_1T = ids_1T

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.ids_1T[0, input_ids.shape[1]]] = 0
        return forced


@torch.inference_mode()
def write(model: Any, ids_1T: Tensor) -> None:
    """Generate all tokens of a text after the first, one at a time."""
    model.generate(
        input_ids=ids_1T[:, :1],
        attention_mask=torch.ones_like(ids_1T[:, :1]),
        logits_processor=[Given(ids_1T)],
        max_new_tokens=ids_1T.shape[1] - 1,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )


def pieces_of_text(config: RunConfig, num_bytes: int, number: int) -> Iterator[str]:
    """Beginnings of documents of the first target set, of at most `num_bytes` bytes each."""
    corpora = config.data.evaluate or config.data.train
    corpus = next(corpus for corpus in corpora if corpus.role == "target")
    texts = (text for text in iter_documents(corpus) if len(text.encode()) >= num_bytes)
    for _, text in zip(range(number), texts, strict=False):
        yield text.encode()[:num_bytes].decode(errors="ignore")


def attached(setup: Setup) -> Any:
    return setup.method.attach(backbone_of(setup, frozen=True), setup.config).eval()


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each piece for each model. The numbers of tokens and bytes are stored in
    `arguments`."""
    config = load_run(arguments.run, tuple(arguments.overrides))
    if not config.vocabulary.size:
        raise SystemExit("new_tokens.py: set vocabulary.size")
    plain = Setup.of(config.model_copy(update={"vocabulary": VocabularySettings()}))
    new = Setup.of(config)
    models = {
        BACKBONE: (backbone_of(plain, frozen=True).eval(), plain),
        WITHOUT: (attached(plain), plain),
        WITH: (attached(new), new),
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    counts = dict.fromkeys(models, 0)
    arguments.num_bytes = 0
    pieces = list(pieces_of_text(config, arguments.piece_bytes, arguments.rounds + 1))
    for number, text in enumerate(pieces):
        tasks = {}
        for name, (model, setup) in models.items():
            ids = [setup.end_of_text, *setup.tokenizer(text)["input_ids"]]
            ids_1T = torch.tensor([ids], device=setup.device)
            tasks[name] = functools.partial(write, model, ids_1T)
            counts[name] += len(ids) - 1 if number else 0
        found = in_turns(tasks, rounds=1, warm_up=0)
        if number:  # the first one warms up
            arguments.num_bytes += len(text.encode())
            for name, values in found.items():
                seconds[name] += values
    arguments.tokens, arguments.tokens_without = counts[WITH], counts[WITHOUT]
    arguments.rounds = len(pieces) - 1
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("overrides", nargs="*", help="for example vocabulary.size=4000")
    parser.add_argument("--piece-bytes", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    seconds = measure(arguments)
    bound = arguments.tokens / arguments.tokens_without
    rows = timed("generate, target text", seconds, against=WITHOUT, bounds={WITH: bound})
    finished("new-tokens", "Writing target text with new tokens", rows, arguments)
    for row in rows:
        speed = arguments.num_bytes / arguments.rounds / row.value
        print(f"{row.name}: {speed:.0f} bytes a second, {1 / row.ratio:.2f} x {row.against}")


if __name__ == "__main__":
    main()
