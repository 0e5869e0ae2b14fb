"""Compares the time of measuring both models with that of two plain lm-eval runs. Prints JSON.

    python benchmarks/tasks.py --limit 670

Measures English minimal pairs on a backbone and its extension (with random residues): with
`measure_tasks`, which loads data, builds prompts and tokenises once, and with two calls of
lm-eval's `evaluate`, each with its own task object. The two ways take turns, A B A B; times are
medians. If their scores differ, the benchmark fails. Loading models and importing lm-eval are not
timed.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch import nn

import neutral_residues.evaluation.tasks.lm_eval_bridge as bridge
from neutral_residues import NeutralResiduesConfig
from neutral_residues.backbone import load_backbone, load_tokenizer
from neutral_residues.demo.run import DEMO_DATA
from neutral_residues.evaluation.inference import as_backbone, inference
from neutral_residues.evaluation.tasks.runner import TaskSettings, measure_tasks, plan_tasks
from neutral_residues.evaluation.tasks.task_files import SHIPPED, file_task, task_files

TASK = "blimp-en"


def extended(backbone: str) -> nn.Module:
    """A model with an extension whose residues are not zero, so that the two models differ."""
    torch.manual_seed(0)
    # Without a residue on the head: plain lm-eval fails if a head with tied weights is wrapped.
    config = NeutralResiduesConfig(budget=0.2, head_rank=0)
    model: Any = get_peft_model(load_backbone(backbone, dtype=torch.float32), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    return model


def ours(model: nn.Module, tokenizer: Any, settings: TaskSettings) -> tuple[float, float]:
    """(backbone, extended) accuracy with `measure_tasks`."""
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_tasks(
            [TASK], settings=settings, tokenizer=tokenizer, sets=[], folder=Path(folder)
        )
        (score,) = measure_tasks(model, plan, model_key="benchmark")
    return score.backbone, score.extended


def plain(model: nn.Module, tokenizer: Any, settings: TaskSettings) -> tuple[float, float]:
    """(backbone, extended) accuracy with two runs of lm-eval."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    def accuracy() -> float:
        tasks = bridge.load_local(file_task(task_files(SHIPPED)[TASK], TASK))
        lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=settings.batch_rows)
        with contextlib.redirect_stderr(io.StringIO()):
            found: Any = evaluate(
                lm=lm,
                task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
                limit=settings.limit,
                bootstrap_iters=0,
            )
        return float(found["results"][TASK]["acc,none"])

    with inference(model):
        after = accuracy()
        with as_backbone(model):
            return accuracy(), after


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone", default=str(DEMO_DATA / "backbone"), help="default: the one that ships"
    )
    parser.add_argument("--limit", type=int, default=None, help="items (default: all that ship)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, default=32)
    args = parser.parse_args()
    model, tokenizer = extended(args.backbone), load_tokenizer(args.backbone)
    settings = TaskSettings(batch_rows=args.batch_rows, context_tokens=128, limit=args.limit)
    ways: dict[str, Callable[..., tuple[float, float]]] = {"ours": ours, "plain": plain}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    scores = {
        way: run(model, tokenizer, settings) for way, run in ways.items()
    }  # a first round to warm up
    for _ in range(args.rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            scores[way] = run(model, tokenizer, settings)
            seconds[way].append(time.perf_counter() - start)
    if scores["ours"] != scores["plain"]:
        raise SystemExit(f"the scores differ: {scores}")
    medians = {
        f"{way}_seconds": round(statistics.median(values), 2) for way, values in seconds.items()
    }
    ratio = statistics.median(seconds["ours"]) / statistics.median(seconds["plain"])
    result = {
        "threads": torch.get_num_threads(),
        "limit": args.limit,
        "rounds": args.rounds,
        **medians,
    }
    print(json.dumps(result | {"ratio": round(ratio, 3), "scores": scores["ours"]}, indent=2))


if __name__ == "__main__":
    main()
