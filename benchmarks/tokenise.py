"""How fast is tokenising, and does its memory stay flat? One command, JSON on standard output.

    python benchmarks/tokenise.py --gigabytes 2

Makes a corpus (.jsonl) of that size from made-up words in a temporary folder, and one a tenth of
its size; tokenises both, each in a process of its own; prints bytes/s, tokens/s and the peak
resident memory of that process and its workers together. Memory is flat if `peak_rss_ratio` is near
1. Memory shared between processes counts once for each of them.

Speed depends on the text: made-up words from a short list are kinder to a tokenizer than a language
is. Give `--corpus` for real text.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

NUM_WORDS = 20_000
NUM_SENTENCES = 50_000
SYLLABLES = [c + v + e for c in "bdfgklmnprstv" for v in "aeiou" for e in ("", "n", "r", "s")]
SAMPLE_SECONDS = 0.2


def sentences(seed: int) -> list[str]:
    """Sentences of made-up words, frequent and rare ones as in a language (a word's weight is 1 /
    its rank)."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(NUM_WORDS)]
    weights = [1 / rank for rank in range(1, NUM_WORDS + 1)]
    picks = iter(rng.choices(words, weights, k=25 * NUM_SENTENCES))
    return [
        " ".join(next(picks) for _ in range(rng.randint(5, 25))).capitalize() + ". "
        for _ in range(NUM_SENTENCES)
    ]


def documents(num_bytes: int, seed: int) -> Iterator[str]:
    """About `num_bytes` of documents of 5 to 60 sentences."""
    rng = random.Random(seed)
    pool = sentences(seed)
    while num_bytes > 0:
        text = "".join(rng.choices(pool, k=rng.randint(5, 60)))
        num_bytes -= len(text)
        yield text


def write_corpus(path: Path, num_bytes: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents(num_bytes, seed=0))


def train_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 8,000 entries, learnt from the made-up text."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    text = documents(2_000_000, seed=0)
    bpe.train_from_iterator(text, vocab_size=8000, special_tokens=["<eot>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eot>").save_pretrained(
        folder
    )


def tokenise_here(corpus_path: Path, model: Path, num_workers: int) -> dict[str, Any]:
    """Tokenise one corpus in this process (and its workers), without a cache from before."""
    from transformers import AutoTokenizer

    from neutral_residues.config.run import Corpus
    from neutral_residues.data.token_stream import tokenise

    tokenizer = AutoTokenizer.from_pretrained(model)
    corpus = Corpus(name="benchmark", role="target", path=corpus_path)
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        stream, _ = tokenise(corpus, tokenizer, cache_dir=Path(cache), num_workers=num_workers)
        seconds = time.perf_counter() - start
        return {
            "text_bytes": stream.num_bytes,
            "documents": stream.num_documents,
            "tokens": stream.num_tokens,
            "seconds": round(seconds, 1),
            "text_bytes_per_second": round(stream.num_bytes / seconds),
            "tokens_per_second": round(stream.num_tokens / seconds),
        }


def measure(corpus_path: Path, model: Path, num_workers: int) -> dict[str, Any]:
    """`tokenise_here` in a new process, and the peak resident memory of that process and its
    workers, in bytes."""
    options = ["--measure", str(corpus_path), "--model", str(model), "--workers", str(num_workers)]
    peak_rss_bytes = 0
    with subprocess.Popen(
        [sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True
    ) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak_rss_bytes = max(peak_rss_bytes, _tree_rss_bytes(root))
            time.sleep(SAMPLE_SECONDS)
        output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(output) | {"peak_rss_bytes": peak_rss_bytes}


def _tree_rss_bytes(root: psutil.Process) -> int:
    total = 0
    for process in [root, *_children(root)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gigabytes", type=float, default=2.0, help="size of the made-up corpus (default: 2)"
    )
    parser.add_argument(
        "--model",
        type=Path,
        help="folder of a tokenizer (default: one learnt from the made-up text)",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="default: one for each core"
    )
    parser.add_argument("--corpus", type=Path, help="tokenise this file instead of made-up text")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(tokenise_here(args.measure, args.model, args.workers)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or folder / "tokenizer"
        if args.model is None:
            train_tokenizer(model)
        runs = []
        for share in (1.0,) if args.corpus else (0.1, 1.0):
            path = args.corpus or folder / f"{share}.jsonl"
            if args.corpus is None:
                write_corpus(path, int(share * args.gigabytes * 1e9))
            runs.append(measure(path, model, args.workers))
    result = {"workers": args.workers, "cores": os.cpu_count(), "runs": runs}
    result["peak_rss_ratio"] = round(runs[-1]["peak_rss_bytes"] / runs[0]["peak_rss_bytes"], 3)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
