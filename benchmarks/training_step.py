"""Time and memory of one training step, every method on the same backbone, batch and run.

    python benchmarks/training_step.py --model FOLDER [--rows 32] [--tokens 128] [--rounds 12] [--output FILE.json]

Methods take turns (A B C A B C ...), so that a slow minute of the machine hits all; medians and ratios to full
fine-tuning are printed. Memory is the peak of a process of its own per method. A step is forward, loss (with the
local loss), backward, clipping and AdamW, as in training, without data loading.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from neutral_residues.config import RunConfig, make_run
from neutral_residues.cost import peak_memory_bytes
from neutral_residues.loading import load_backbone, load_config, pick_device
from neutral_residues.losses import SOURCE, TARGET, next_token_nats
from neutral_residues.methods import find_method, resolved
from neutral_residues.mixin import local_loss

TIMED = ("neutral", "neutral-sigmoid", "adapter", "lora", "lora-mlp", "dora", "osf", "finetune-ffn", "finetune")
"""Methods that train and that a budget of 20 % fits; full fine-tuning is what the others are held against."""


def config_for(method: str, model: str) -> RunConfig:
    corpora = [{"name": role, "role": role, "path": f"{role}.txt"} for role in ("source", "target")]
    return resolved(make_run({"model": model, "method": method, "output": "unused", "data": {"train": corpora}}))


def make_step(method: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """A function that does one training step of `method`."""
    config = config_for(method, arguments.model)
    device = pick_device()
    bf16 = device.type == "cuda"
    frozen_in_bf16 = bf16 and find_method(method).keeps_backbone
    backbone = load_backbone(arguments.model, dtype=torch.bfloat16 if frozen_in_bf16 else torch.float32).to(device)
    model = find_method(method).attach(backbone, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.rows, arguments.tokens)
    vocabulary = load_config(arguments.model).get_text_config().vocab_size
    input_ids = torch.randint(vocabulary, shape, generator=generator).to(device)
    labels = torch.full(shape, TARGET, device=device)
    labels[: max(1, arguments.rows // 10)] = SOURCE

    def loss() -> torch.Tensor:
        return next_token_nats(model(input_ids=input_ids, use_cache=False).logits, input_ids).mean()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if find_method(method).has_local_loss:
                with local_loss(model, labels) as local:
                    (loss() + config.residues.local_loss_weight * local.mean()).backward()
            else:
                loss().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def peak_bytes(method: str, arguments: argparse.Namespace) -> int:
    """Peak memory of three steps in a process of its own."""
    command = [sys.executable, __file__, "--model", arguments.model, "--rows", str(arguments.rows)]
    command += ["--tokens", str(arguments.tokens), "--only-memory", method]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    names = arguments.methods
    memory = {name: peak_bytes(name, arguments) for name in names}
    steps = {name: make_step(name, arguments) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(arguments.rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number >= 2:  # the first two warm up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, seconds["finetune"], strict=True))
        for name, values in seconds.items()
    }
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "rows": arguments.rows,
        "tokens": arguments.tokens,
        "rounds": arguments.rounds,
        "methods": {
            name: {
                "median_seconds": medians[name],
                "time_ratio_to_finetune": ratios[name],
                "peak_bytes": memory[name],
                "memory_ratio_to_finetune": memory[name] / memory["finetune"],
            }
            for name in names
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--methods", nargs="+", choices=TIMED, default=TIMED)
    parser.add_argument("--only-memory", choices=TIMED)
    arguments = parser.parse_args()
    if arguments.only_memory:
        step = make_step(arguments.only_memory, arguments)
        for _ in range(3):
            step()
        print(peak_memory_bytes(pick_device()))
        return
    arguments.methods = [*dict.fromkeys([*arguments.methods, "finetune"])]
    text = json.dumps(measure(arguments), indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
