"""Compares the time of measuring held-out text with and without sharing what both models have in
common. Prints JSON.

    python benchmarks/evaluation.py runs/french --rounds 3

For each evaluation set of a finished run: all windows by both models, and windows on which no gate
opens once for both, as `evaluate` does. The two ways take turns, A B A B; times are medians of
processor time. If their results differ by more than rounding, the benchmark fails.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import neutral_residues.evaluation.evaluate as module
from neutral_residues.evaluation.evaluate_saved import evaluation_streams, windows_for
from neutral_residues.evaluation.inference import inference, untouched_rows
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.results.set_result import SetResult
from neutral_residues.training.progress import RunProgress


def none_untouched(model: nn.Module, input_ids: Tensor) -> Tensor:
    """In place of `untouched_rows`: every row is run by both models."""
    return torch.zeros(len(input_ids), dtype=torch.bool)


WAYS = {"shared": untouched_rows, "both": none_untouched}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="output folder of a finished run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=None, help="tokens of each set")
    args = parser.parse_args()
    saved = load_saved(args.run, dtype=None)
    windows = windows_for(saved, None, None)
    results: dict[str, Any] = {}
    for stream in evaluation_streams(saved, [], RunProgress(quiet=True).tokenising):
        text = stream if args.max_tokens is None else stream.first_documents(args.max_tokens)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        found: dict[str, SetResult] = {}
        for _ in range(args.rounds):
            for way, untouched in WAYS.items():
                vars(module)["untouched_rows"] = untouched
                start = time.process_time()
                measured = module.evaluate(
                    saved.model, [text], windows, reference=saved.reference, kl=True
                )
                found[way] = measured[text.name]
                seconds[way].append(time.process_time() - start)
        one, other = (found[way] for way in WAYS)
        if not math.isclose(one.extended_nats, other.extended_nats, rel_tol=1e-4):
            raise SystemExit(f"{text.name}: the results differ: {one} {other}")
        with inference(saved.model):
            rows = [windows.rows(text.tokens, it)[0] for it in windows.batches(text.num_tokens)]
            shut = sum(int(untouched_rows(saved.model, it).sum()) for it in rows)
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        results[text.name] = {
            "windows": sum(map(len, rows)),
            "without_open_gate": shut,
            **{f"{way}_seconds": round(value, 2) for way, value in medians.items()},
            "ratio": round(medians["shared"] / medians["both"], 3),
        }
    print(json.dumps({"threads": torch.get_num_threads(), "sets": results}, indent=2))


if __name__ == "__main__":
    main()
