"""Learning rates of gates, raised where a gate's input x is small.

A step of Adam changes every weight by about the learning rate, and so the logit w . x + b of a
layer's gate in proportion to the sum of |x|. Backbones differ in this by a factor of ten (after the
norm layer, x has a root mean square of 0.8 in one and 0.1 in another), and with the same learning
rate the gates of the second would stay open ten times as long (LAB.md, "one local loss for every
backbone"). So the rate is divided by the root mean square of the gate's input if that is below 1.
It is not lowered above 1: a gate that closes late on source text closes on target text too.
"""

import math

import torch
from torch import Tensor, nn

from neutral_residues.tuner.layer import no_skipping, trained_gates
from neutral_residues.tuner.routing import temporarily

ROWS, TOKENS = 2, 64
"""Size of the random batch for measuring inputs: after a norm layer, their scale is the same for
any text, to within a tenth."""


@torch.no_grad()
def gate_rates(model: nn.Module) -> list[tuple[nn.Module, float]]:
    """Every trainable gate with the factor on its learning rate, the same on all ranks. The factor
    is 1 for a gate that reads tokens (`gate_reads="tokens"`). For other gates the model runs once,
    on a few random tokens; the global random state does not change."""
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
    """1 / rms if rms is in (0, 1), else 1; to two digits, so that ranks agree even if their
    arithmetic differs."""
    return float(f"{1 / rms:.2g}") if math.isfinite(rms) and 0 < rms < 1 else 1.0
