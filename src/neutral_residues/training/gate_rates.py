"""How fast a gate can move: its learning rate follows the size of the numbers that it reads.

A step of Adam changes every weight by about the learning rate, so the logit w . x + b of a layer's
gate by as much as the sum of |x|. Backbones differ in that by a factor of ten (behind its norm, x
has a root mean square of 0.8 in one and of 0.1 in another), and with one learning rate the gates of
the second would stay open for ten times as long (LAB.md, "one local loss for every backbone"). So
the rate is divided by the root mean square of what the gate reads, where that is below 1. Above it
is not: a gate that closes late on the source takes the target with it.
"""

import math

import torch
from torch import Tensor, nn

from neutral_residues.tuner.layer import no_skipping, trained_gates
from neutral_residues.tuner.routing import temporarily

ROWS, TOKENS = 2, 64
"""Random tokens that are read: behind a norm, any text has the same scale to within a tenth."""


@torch.no_grad()
def gate_rates(model: nn.Module) -> list[tuple[nn.Module, float]]:
    """Every gate that trains, with the factor on its learning rate, the same on all ranks: 1 for
    one that reads the text itself. May run the model once, on a few random tokens; no random state
    changes."""
    gates = trained_gates(model)
    squares: dict[int, Tensor] = {}

    def measure(gate: nn.Module, args: tuple[Tensor, ...]) -> None:
        squares[id(gate)] = args[0].float().square().mean()

    of_layers = [gate for gate in gates if isinstance(gate, nn.Linear)]
    hooks = [gate.register_forward_pre_hook(measure) for gate in of_layers]
    try:
        if of_layers:
            with no_skipping(model), temporarily(list(model.modules()), "training", False):
                model(input_ids=_random_tokens(model))
    finally:
        for hook in hooks:
            hook.remove()
    rms = {key: square.sqrt().item() for key, square in squares.items()}
    return [(gate, _factor(rms.get(id(gate), 1.0))) for gate in gates]


def _random_tokens(model: nn.Module) -> Tensor:
    embeddings = model.get_input_embeddings()  # type: ignore[operator]
    seeded = torch.Generator().manual_seed(0)
    tokens = torch.randint(len(embeddings.weight), (ROWS, TOKENS), generator=seeded)
    return tokens.to(embeddings.weight.device)


def _factor(rms: float) -> float:
    """To two digits, so that ranks agree that round differently; 1 for what is no scale."""
    return float(f"{1 / rms:.2g}") if math.isfinite(rms) and 0 < rms < 1 else 1.0
