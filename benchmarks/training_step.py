"""Measures time and memory of one training step of all methods, on the same backbone and batch.

    python benchmarks/training_step.py --model FOLDER [--rows 32] [--tokens 128] [--rounds 12]
    python benchmarks/training_step.py --width 1024 --layers 8 --rows 4     a random Llama
    python benchmarks/training_step.py --width 576 --layers 8 --rows 8 --vocabulary 150000 --tied \
        --methods neutral neutral-no-head adapter adapter-no-head     the head's residue
    python benchmarks/training_step.py --methods neutral neutral-adamw finetune-muon      Muon

Add `--output FILE.json` to keep the numbers.

Methods take turns (A B C A B C ...), so that a slow phase of the machine affects all of them;
printed are medians, and ratios to full fine-tuning. Memory is the peak of a separate process for
each method. A step is forward, loss (with the local loss), backward, clipping and the optimizer, as
in training, without data loading.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import bound_of, finished, in_turns, peaks, random_llama, timed
from neutral_residues.backbone import load_backbone, pick_device
from neutral_residues.config.run import RunConfig, make_run
from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.losses import next_token_nats
from neutral_residues.methods.table import find_method
from neutral_residues.results.benchmark import Measured
from neutral_residues.training.cost import peak_memory_bytes
from neutral_residues.training.local_loss import local_loss
from neutral_residues.training.muon import add_muon

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "neutral-no-head": ("neutral", {"residues": {"head_rank": 0}}),
    "adapter-no-head": ("adapter", {"residues": {"head_rank": 0}}),
    "neutral-adamw": ("neutral", {"training": {"optimizer": "adamw"}}),
    "finetune-muon": ("finetune", {"training": {"optimizer": "muon"}}),
}
"""Name here -> method and settings, for methods measured with other settings than their own."""

TIMED = (
    "neutral",
    "neutral-sigmoid",
    "adapter",
    "lora",
    "lora-mlp",
    "dora",
    "osf",
    "finetune-ffn",
    "finetune",
    "neutral-no-head",
    "adapter-no-head",
)
"""Methods that train, and for which a budget of 20 % makes sense; times are relative to full
fine-tuning."""
NAMES = tuple(dict.fromkeys([*TIMED, *VARIANTS]))


def config_for(name: str) -> RunConfig:
    method, settings = VARIANTS.get(name, (name, {}))
    corpora = [{"name": role, "role": role, "path": f"{role}.txt"} for role in ("source", "target")]
    values = {"model": "unused", "method": method, "output": "unused", "data": {"train": corpora}}
    return find_method(method).resolve(make_run(values | settings))


def backbone_for(arguments: argparse.Namespace, *, dtype: torch.dtype) -> nn.Module:
    if arguments.model:
        return load_backbone(arguments.model, dtype=dtype).to(pick_device())
    sizes = {"width": arguments.width, "layers": arguments.layers}
    model = random_llama(**sizes, vocabulary=arguments.vocabulary, tied=arguments.tied)
    return model.to(dtype)


def make_step(name: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """A function that runs one training step of the method `name`."""
    config = config_for(name)
    method, device = find_method(config.method), pick_device()
    bf16 = device.type == "cuda"
    frozen_in_bf16 = bf16 and method.keeps_backbone
    backbone = backbone_for(arguments, dtype=torch.bfloat16 if frozen_in_bf16 else torch.float32)
    model = method.attach(backbone, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95))
    if config.training.optimizer == "muon":
        optimizer = add_muon(model, optimizer)
    generator = torch.Generator().manual_seed(0)
    shape = (arguments.rows, arguments.tokens)
    vocabulary = backbone.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
    input_ids = torch.randint(vocabulary, shape, generator=generator).to(device)
    labels = torch.full(shape, TARGET, device=device)
    labels[: max(1, arguments.rows // 10)] = SOURCE

    def loss() -> torch.Tensor:
        return next_token_nats(model(input_ids=input_ids, use_cache=False).logits, input_ids).mean()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            if method.has_local_loss:
                with local_loss(model, labels) as local:
                    (loss() + config.residues.local_loss_weight * local.mean()).backward()
            else:
                loss().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(arguments: argparse.Namespace) -> list[Measured]:
    names = arguments.methods
    memory = peaks("peak memory of training above Python's own", names, against="finetune")
    seconds = in_turns(
        {name: make_step(name, arguments) for name in names}, rounds=arguments.rounds
    )
    bounds = {name: time_bound(name, arguments) for name in names}
    return timed("training step", seconds, against="finetune", bounds=bounds) + memory


def time_bound(name: str, arguments: argparse.Namespace) -> float | None:
    """Theoretical ratio of the time to full fine-tuning, if limited by operations; None unless all
    new weights of the method are in separate matrix products."""
    if name == "finetune":
        return 1.0
    config = config_for(name)
    if config.method not in ("neutral", "neutral-sigmoid", "adapter"):
        return None
    backbone = backbone_for(arguments, dtype=torch.float32)
    return bound_of(find_method(config.method).attach(backbone, config)).train_frozen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--tied", action="store_true", help="tie head and embeddings")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=TIMED)
    parser.add_argument("--only-memory", choices=(*NAMES, "nothing"))
    arguments = parser.parse_args()
    if arguments.only_memory:
        if arguments.only_memory != "nothing":
            step = make_step(arguments.only_memory, arguments)
            for _ in range(3):
                step()
        print(peak_memory_bytes(pick_device()))
        return
    arguments.methods = [*dict.fromkeys([*arguments.methods, "finetune"])]
    finished("training_step", "A training step", measure(arguments), arguments)


if __name__ == "__main__":
    main()
