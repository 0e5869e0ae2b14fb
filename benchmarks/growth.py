"""How the cost of an extension grows: with tokens, width, layers, budget and the number of extensions.

    python benchmarks/growth.py [--rounds 8] [--output FILE.json]

One thing is changed at a time from the middle of the road: a random Llama of width 512 with 4 layers, 256 tokens, one
extension of 20 %. Each point is the time of a prefill by the backbone's, in turns: with all gates shut and all open, on
the default path and fused; and of a training step (forward, local loss, backward) by the backbone's with all weights
training.
"""

import argparse
import copy
import functools
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference import all_of_them, run
from models import bound_of, extended, finished, in_turns, random_llama, ratio, set_gates
from neutral_residues.loading import pick_device
from neutral_residues.losses import SOURCE, TARGET, next_token_nats
from neutral_residues.mixin import local_loss
from neutral_residues.speed import Measured

MIDDLE: dict[str, Any] = {"tokens": 256, "width": 512, "layers": 4, "budget": 0.2, "extensions": 1}
AXES: dict[str, list[float]] = {
    "tokens": [16, 64, 256, 1024],
    "width": [128, 256, 512, 1024],
    "layers": [2, 4, 8],
    "budget": [0.05, 0.1, 0.2, 0.4],
    "extensions": [1, 2, 4],
}


def train_step(model: nn.Module, input_ids: Tensor, labels: Tensor | None) -> None:
    """Forward, loss and backward; with `labels` the local loss too. No optimiser: it grows with the weights alone."""
    if labels is None:
        next_token_nats(model(input_ids=input_ids, use_cache=False).logits, input_ids).mean().backward()
    else:
        with local_loss(model, labels) as local:
            nats = next_token_nats(model(input_ids=input_ids, use_cache=False).logits, input_ids).mean()
            (nats + local.mean()).backward()
    model.zero_grad()


def point(axis: str, value: float, *, rounds: int) -> list[Measured]:
    """All measurements with one thing changed."""
    size = {**MIDDLE, axis: type(MIDDLE[axis])(value)}
    model = extended(
        random_llama(width=size["width"], layers=size["layers"]), budget=size["budget"], extensions=size["extensions"]
    )
    bound = bound_of(model)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(8192, (1, size["tokens"]), generator=generator).to(pick_device())
    rows: list[Measured] = []

    def add(group: str, name: str, seconds: dict[str, list[float]], against: str, limit: float) -> None:
        rows.append(
            Measured(
                group=f"{group} by {axis}",
                name=name,
                against=against,
                ratio=ratio(seconds, name, against),
                bound=limit,
                value=statistics.median(seconds[name]),
                x=float(value),
                x_label=axis,
            )
        )

    for is_open in (False, True):
        set_gates(model, is_open=is_open)
        models = {who: m for who, m in all_of_them(model).items() if who != "plain"}
        tasks = {who: functools.partial(run, m, input_ids) for who, m in models.items()}
        names = {who: f"{who}, gates {'open' if is_open else 'shut'}" for who in ("skip", "fused")}
        seconds = {names.get(who, who): values for who, values in in_turns(tasks, rounds=rounds).items()}
        for name in names.values():
            add("prefill", name, seconds, "backbone", bound.run_open if is_open else 1.0)
    everything = copy.deepcopy(model).unload().train().requires_grad_(True)
    labels = torch.full_like(input_ids, TARGET)
    labels[:, : max(1, size["tokens"] // 10)] = SOURCE
    trained = {
        "full fine-tuning": functools.partial(train_step, everything, input_ids, None),
        "neutral residues": functools.partial(train_step, model.train(), input_ids, labels),
    }
    seconds = in_turns(trained, rounds=rounds)
    add("training", "neutral residues", seconds, "full fine-tuning", bound.train_frozen)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=tuple(AXES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = [
        row for axis in arguments.axes for value in AXES[axis] for row in point(axis, value, rounds=arguments.rounds)
    ]
    finished("growth", "How the cost of an extension grows", rows, arguments)


if __name__ == "__main__":
    main()
