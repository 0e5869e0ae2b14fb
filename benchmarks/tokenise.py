"""Measures the speed and memory of tokenising. Prints JSON.

    python benchmarks/tokenise.py --gigabytes 2
    python benchmarks/tokenise.py --corpus fr.jsonl.gz --model DIR --against datasets --rounds 3

Makes a corpus (.jsonl) of this size from invented words in a temporary folder, and one of a tenth
of the size; tokenises each in a separate process; prints bytes/s, tokens/s and the peak memory of
that process and its workers together. Memory does not depend on the size of the corpus if
`peak_memory_ratio` is near 1. Only private memory counts, not mapped files, which the system can
drop.

`--against datasets` measures `datasets` in turn: load_dataset("json"), map(tokenise) with the same
number of processes, and writing the same flat file of tokens; also from an empty cache.

Speed depends on the text: invented words from a short list are easier for a tokenizer than real
text, for which there is `--corpus`.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
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
    """Sentences of invented words, whose frequencies follow Zipf's law (1 / rank)."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(NUM_WORDS)]
    weights = [1 / rank for rank in range(1, NUM_WORDS + 1)]
    picks = iter(rng.choices(words, weights, k=25 * NUM_SENTENCES))
    return [
        " ".join(next(picks) for _ in range(rng.randint(5, 25))).capitalize() + ". "
        for _ in range(NUM_SENTENCES)
    ]


def documents(num_bytes: int, seed: int) -> Iterator[str]:
    """Documents of 5 to 60 sentences, about `num_bytes` bytes in total."""
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
    """Train a byte-level BPE tokenizer with 8,000 tokens on invented text, and save it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    text = documents(2_000_000, seed=0)
    bpe.train_from_iterator(text, vocab_size=8000, special_tokens=["<eot>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<eot>").save_pretrained(
        folder
    )


def tokenise_ours(corpus_path: Path, model: Path, workers: int, cache: Path) -> tuple[int, int]:
    """Tokenise a corpus with this package; returns the numbers of bytes and tokens."""
    from transformers import AutoTokenizer

    from neutral_residues.config.data import Corpus
    from neutral_residues.data.tokenise import tokenise

    os.environ["RAYON_NUM_THREADS"] = str(workers)
    tokenizer = AutoTokenizer.from_pretrained(model)
    corpus = Corpus(name="benchmark", role="target", path=corpus_path)
    stream, _ = tokenise(corpus, tokenizer, cache_dir=cache)
    return stream.num_bytes, stream.num_tokens


def tokenise_with_datasets(
    corpus_path: Path, model: Path, workers: int, cache: Path
) -> tuple[int, int]:
    """Tokenise a corpus with `datasets` (json -> map -> a flat file of uint16 tokens); returns the
    numbers of bytes and tokens."""
    import datasets
    import numpy as np
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    # Threads inside the tokenizer would use more cores than `workers`.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)
        return {
            "tokens": [[*one, tokenizer.eos_token_id] for one in ids["input_ids"]],
            "num_bytes": [len(text.encode()) for text in batch["text"]],
        }

    table = datasets.load_dataset(
        "json", data_files=str(corpus_path), split="train", cache_dir=str(cache)
    )
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("uint16")),
            "num_bytes": datasets.Value("int64"),
        }
    )
    table = table.map(
        encode,
        batched=True,
        batch_size=64,  # the default of 1,000 takes more memory
        writer_batch_size=64,
        num_proc=workers or None,
        remove_columns=table.column_names,
        features=features,
    )
    num_bytes = 0
    with (cache / "tokens.bin").open("wb") as file:
        for batch in table.with_format("arrow").iter(1024):
            file.write(batch["tokens"].combine_chunks().flatten().to_numpy().tobytes())
            num_bytes += int(batch["num_bytes"].to_numpy().sum())
    return num_bytes, len(np.memmap(cache / "tokens.bin", "uint16", mode="r"))


ENGINES = {"ours": tokenise_ours, "datasets": tokenise_with_datasets}


def tokenise_here(engine: str, corpus_path: Path, model: Path, workers: int) -> dict[str, Any]:
    """Tokenise one corpus in this process and its workers, with an empty cache; returns sizes and
    times."""
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        num_bytes, num_tokens = ENGINES[engine](corpus_path, model, workers, Path(cache))
        seconds = time.perf_counter() - start
    return {
        "engine": engine,
        "text_bytes": num_bytes,
        "tokens": num_tokens,
        "seconds": round(seconds, 1),
        "text_bytes_per_second": round(num_bytes / seconds),
        "tokens_per_second": round(num_tokens / seconds),
    }


def measure(engine: str, corpus_path: Path, model: Path, workers: int) -> dict[str, Any]:
    """The results of `tokenise_here` in a new process, with the peak memory of that process and its
    workers in bytes."""
    options = ["--measure", engine, "--model", str(model), "--workers", str(workers)]
    peak = 0
    with subprocess.Popen(
        [sys.executable, __file__, "--corpus", str(corpus_path), *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        root = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _memory_bytes(root))
            time.sleep(SAMPLE_SECONDS)
        output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(output) | {"peak_memory_bytes": peak}


def _memory_bytes(root: psutil.Process) -> int:
    """Private memory of a process and its children; pages that they share count once."""
    kilobytes = 0
    for process in [root, *_children(root)]:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            kilobytes += int(rollup.split("Pss_Anon:")[1].split()[0])
    return kilobytes * 1024


def _children(root: psutil.Process) -> list[psutil.Process]:
    try:
        return root.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Engine -> median seconds."""
    return {
        engine: statistics.median(run["seconds"] for run in runs if run["engine"] == engine)
        for engine in dict.fromkeys(run["engine"] for run in runs)
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--gigabytes", type=float, default=2.0, help="size of the made-up corpus (default: 2)")
    add("--model", type=Path, help="folder of a tokenizer (default: learnt from made-up text)")
    add("--workers", type=int, default=os.cpu_count(), help="default: one for each core")
    add("--corpus", type=Path, help="tokenise this file instead of made-up text")
    add("--against", choices=["datasets"], help="take turns with this engine")
    add("--rounds", type=int, default=1, help="how often each corpus is tokenised (default: 1)")
    add("--measure", choices=sorted(ENGINES), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = _options()
    if args.measure:
        print(json.dumps(tokenise_here(args.measure, args.corpus, args.model, args.workers)))
        return
    engines = ["ours", args.against] if args.against else ["ours"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or folder / "tokenizer"
        if args.model is None:
            train_tokenizer(model)
        paths = [args.corpus] if args.corpus else [folder / "tenth.jsonl", folder / "whole.jsonl"]
        if not args.corpus:
            for path, share in zip(paths, (0.1, 1.0), strict=True):
                write_corpus(path, int(share * args.gigabytes * 1e9))
        runs = [
            measure(engine, path, model, args.workers)
            for path in paths
            for _ in range(args.rounds)
            for engine in engines
        ]
    result = {"workers": args.workers, "cores": os.cpu_count(), "load": os.getloadavg()}
    result |= {
        "median_seconds": medians(
            [run for run in runs if run["text_bytes"] == runs[-1]["text_bytes"]]
        )
    }
    ours = [run["peak_memory_bytes"] for run in runs if run["engine"] == "ours"]
    result |= {"peak_memory_ratio": round(ours[-1] / ours[0], 3), "runs": runs}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
