"""Measures how the cost of an extension grows with tokens, width, layers, budget, the number of
extensions and the share of open gates.

    python benchmarks/growth.py [--rounds 8] [--output FILE.json]

One setting at a time is changed from a default: a random Llama of width 512 with 4 layers, 256
tokens, and one extension with a budget of 20 %. Measured are the time of a prefill, relative to the
backbone's, with all gates closed and with all open, unfused and fused; and the time of a training
step (forward, local loss, backward), relative to full fine-tuning. All take turns. `open share`
opens gates on a random share of tokens, and compares computing only these tokens with computing all
tokens.
"""

import argparse
import copy
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inference import all_of_them, run
from models import (
    bound_of,
    extended,
    finished,
    in_turns,
    open_some_gates,
    random_llama,
    set_gates,
    timed,
)
from neutral_residues.backbone import pick_device
from neutral_residues.data.labels import SOURCE, TARGET
from neutral_residues.losses import next_token_nats
from neutral_residues.results.benchmark import Measured
from neutral_residues.training.local_loss import local_loss
from neutral_residues.tuner import skipping

OPEN_SHARE = "open share"
MIDDLE: dict[str, Any] = {"tokens": 256, "width": 512, "layers": 4, "budget": 0.2, "extensions": 1}
AXES: dict[str, list[float]] = {
    "tokens": [16, 64, 256, 1024],
    "width": [128, 256, 512, 1024],
    "layers": [2, 4, 8],
    "budget": [0.05, 0.1, 0.2, 0.4],
    "extensions": [1, 2, 4],
    OPEN_SHARE: [0.0, 0.25, 0.5, 0.75, 0.9],
}


def train_step(model: nn.Module, input_ids: Tensor, labels: Tensor | None) -> None:
    """Forward, loss and backward; with `labels`, the local loss too. Without the optimiser, whose
    time depends only on the number of weights."""
    if labels is None:
        next_token_nats(
            model(input_ids=input_ids, use_cache=False).logits, input_ids
        ).mean().backward()
    else:
        with local_loss(model, labels) as local:
            nats = next_token_nats(
                model(input_ids=input_ids, use_cache=False).logits, input_ids
            ).mean()
            (nats + local.mean()).backward()
    model.zero_grad()


Seconds = dict[str, list[float]]


def measured(
    group: str, name: str, against: str, seconds: Seconds, *, axis: str, value: float, limit: float
) -> Measured:
    rows = timed(f"{group} by {axis}", seconds, against=against, bounds={name: limit})
    row = next(row for row in rows if row.name == name)
    return row.model_copy(update={"x": float(value), "x_label": axis})


def sized(axis: str, value: float) -> tuple[Any, Tensor]:
    """A model and input ids with one setting changed from its default."""
    size = {**MIDDLE, axis: type(MIDDLE.get(axis, 0.0))(value)}
    backbone = random_llama(width=size["width"], layers=size["layers"])
    model = extended(backbone, budget=size["budget"], extensions=size["extensions"])
    generator = torch.Generator().manual_seed(0)
    return model, torch.randint(8192, (1, size["tokens"]), generator=generator).to(pick_device())


def point(axis: str, value: float, *, rounds: int) -> list[Measured]:
    """All measurements with one setting changed from its default."""
    model, input_ids = sized(axis, value)
    bound, rows = bound_of(model), []
    for is_open in (False, True):
        set_gates(model, is_open=is_open)
        models = {who: m for who, m in all_of_them(model).items() if who != "plain"}
        tasks = {who: functools.partial(run, m, input_ids) for who, m in models.items()}
        names = {
            who: f"{who}, gates {'open' if is_open else 'closed'}" for who in ("skip", "fused")
        }
        seconds = {
            names.get(who, who): values for who, values in in_turns(tasks, rounds=rounds).items()
        }
        limits = {"skip": bound.run_open if is_open else 1.0, "fused": bound.run_open}
        rows += [
            measured(
                "prefill", name, "backbone", seconds, axis=axis, value=value, limit=limits[who]
            )
            for who, name in names.items()
        ]
    everything = copy.deepcopy(model).unload().train().requires_grad_(True)
    labels = torch.full_like(input_ids, TARGET)
    labels[:, : max(1, input_ids.shape[1] // 10)] = SOURCE
    trained = {
        "full fine-tuning": functools.partial(train_step, everything, input_ids, None),
        "neutral residues": functools.partial(train_step, model.train(), input_ids, labels),
    }
    seconds = in_turns(trained, rounds=rounds)
    limit, against = bound.train_frozen, "full fine-tuning"
    rows.append(
        measured(
            "training", "neutral residues", against, seconds, axis=axis, value=value, limit=limit
        )
    )
    return rows


def gathered(share: float, *, rounds: int) -> list[Measured]:
    """Prefill with gates open on this share of the tokens: residues computed only for these tokens
    (gathered), and for every token."""
    model, input_ids = sized(OPEN_SHARE, share)
    open_some_gates(model, share)
    models = {name: m for name, m in all_of_them(model).items() if name != "fused"}
    usual, skipping.DENSE_SHARE = skipping.DENSE_SHARE, 1.0
    seconds = in_turns(
        {name: functools.partial(run, m, input_ids) for name, m in models.items()}, rounds=rounds
    )
    skipping.DENSE_SHARE = usual
    new = bound_of(model).run_open - 1
    seconds = {
        "gathered": seconds["skip"],
        "every token": seconds["plain"],
        "backbone": seconds["backbone"],
    }
    limits = {"gathered": 1 + share * new, "every token": 1 + new}
    return [
        measured("prefill", name, "backbone", seconds, axis=OPEN_SHARE, value=share, limit=limit)
        for name, limit in limits.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--axes", nargs="+", choices=tuple(AXES), default=tuple(AXES))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for axis in arguments.axes:
        for value in AXES[axis]:
            rounds = arguments.rounds
            rows += (
                gathered(value, rounds=rounds)
                if axis == OPEN_SHARE
                else point(axis, value, rounds=rounds)
            )
    finished("growth", "How the cost of an extension grows", rows, arguments)


if __name__ == "__main__":
    main()
