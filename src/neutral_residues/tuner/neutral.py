"""The paper in one file: gated residues beside the feed-forward blocks of a frozen language model.

Talla, Grave, Jegou, *Neutral Residues: Revisiting Adapters for Model Extension*, arXiv 2410.02744
(ICML 2025).

In every layer a small gated adapter runs parallel to the feed-forward block (FFN), on the FFN's own
input x:

    out(x) = FFN(x) + g(x) * A(x)                        section 3, "Architecture"
    A(x)   = W_o ( act(W_g x) * (W_i x) )                a GLU without biases
    g(x)   = relu(w . x + b)                             the block gate; also elu, sigmoid, none

Trained so that g(x) * A(x) is (near) zero on the source domain (see `losses.py`), the backbone
stays what it was there.

    symbol   shape   name in checkpoints           meaning
    x        D       -                             the FFN's input at one token
    W_g      R x D   neutral_residues_gate         projection inside the activation
    W_i      R x D   neutral_residues_up           the other projection
    W_o      D x R   neutral_residues_down         output projection, zero at the start
    w, b     1 x D   neutral_residues_block        the block gate; b is ours, see below

Suffixes: B rows, T tokens, D model width, R adapter width, 1 one number per token.

This file knows no host model: `attach.py` puts it into one.

Where we choose (the paper, as far as it is known, leaves these open):

- The block gate is one number per token and layer.
- The gate starts open: w = 0 and b = 1, so g = 1 on every token. The adapter learns from the first
  step as if it had no gate, and the local loss then closes the gate where the text is source. With
  w random and no b ("random"), half of all tokens start shut and learn nothing there; LAB.md has
  both measured, and shows that open gates do not die.
- A sigmoid gate can also start "half": w = 0 and no b, so g = 1/2 on every token. Without b the
  layer is exactly a mixture-of-experts layer with a gated shared expert, which stock runtimes have.
  ReLU and ELU cannot start there: they are 0 at 0, and with W_o = 0 as well no weight would ever
  have a gradient.
- The inner projections start with the usual variance by default: with an open gate it learns more
  and forgets no more.
- The activation inside A is the backbone's own unless set.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.errors import UserError

BlockGate = Literal["relu", "elu", "sigmoid", "none"]
Init = Literal["paper", "usual"]
GateStart = Literal["open", "random", "half"]

BLOCK_GATES: tuple[str, ...] = get_args(BlockGate)
INITS: tuple[str, ...] = get_args(Init)
GATE_STARTS: tuple[str, ...] = get_args(GateStart)

# A share of new weights is met within this relative error, or refused.
BUDGET_TOLERANCE = 0.02


class Residue(NamedTuple):
    """What one adapter adds to one feed-forward block.

    Attributes:
        delta: (..., D) g(x) * A(x), to be added to the FFN's output.
        gate: (..., 1) g(x), or None where the block gate is "none".
        gate_logits: (..., 1) w . x + b, or None where the block gate is "none".
    """

    delta: Tensor
    gate: Tensor | None
    gate_logits: Tensor | None


def block_gate(gate_logits: Tensor, kind: BlockGate) -> Tensor:
    """g = kind(w . x + b), elementwise. `relu` is exactly 0 for every logit up to 0, `elu` and
    `sigmoid` never are."""
    if kind == "relu":
        return F.relu(gate_logits)
    if kind == "elu":
        return F.elu(gate_logits)
    if kind == "sigmoid":
        return torch.sigmoid(gate_logits)
    raise UserError("block_gate", got=kind, allowed=", ".join(BLOCK_GATES))


def residue(
    x: Tensor,
    *,
    w_g: nn.Linear,
    w_i: nn.Linear,
    w_o: nn.Linear,
    w: nn.Linear | None,
    activation: nn.Module,
    gate_kind: BlockGate,
) -> Residue:
    """g(x) * A(x) for x of shape (..., D). Paper: section 3, "Architecture"."""
    adapter = w_o(activation(w_g(x)) * w_i(x))
    if w is None:
        return Residue(adapter, None, None)
    gate_logits = w(x)
    gate = block_gate(gate_logits, gate_kind)
    return Residue(gate * adapter, gate, gate_logits)


class Projections(NamedTuple):
    """The four of one adapter; w is None where the block gate is "none"."""

    w_g: nn.Linear
    w_i: nn.Linear
    w_o: nn.Linear
    w: nn.Linear | None


def new_projections(
    *, width_in: int, width: int, gated: bool, gate_start: GateStart = "open"
) -> Projections:
    """For D = `width_in` and R = `width`, not initialised yet; only a gate that starts open has a
    b."""
    return Projections(
        w_g=nn.Linear(width_in, width, bias=False),
        w_i=nn.Linear(width_in, width, bias=False),
        w_o=nn.Linear(width, width_in, bias=False),
        w=nn.Linear(width_in, 1, bias=gate_start == "open") if gated else None,
    )


@torch.no_grad()
def initialise(
    *,
    w_g: nn.Linear,
    w_i: nn.Linear,
    w_o: nn.Linear,
    w: nn.Linear | None,
    num_layers: int,
    init: Init,
    gate_start: GateStart = "open",
) -> None:
    """Fill the weights of one adapter in place. W_o = 0, so at step 0 the extended model *is* the
    backbone.

    `init="paper"`: W_g and W_i have variance 1/(D L), the paper's "low variance" (section 3,
    "Initialisation"); `init="usual"`: 2/D. A gate that starts at random has variance 1/(D L); the
    others start with w = 0.

    Args:
        num_layers: L, the number of layers of the backbone that carry an adapter.
    """
    width_in = w_g.in_features
    if init not in INITS:
        raise UserError("init", got=init, allowed=", ".join(INITS))
    variance = 1 / (width_in * num_layers) if init == "paper" else 2 / width_in
    nn.init.normal_(w_g.weight, std=math.sqrt(variance))
    nn.init.normal_(w_i.weight, std=math.sqrt(variance))
    nn.init.zeros_(w_o.weight)
    if w is None:
        return
    if gate_start == "random":
        nn.init.normal_(w.weight, std=math.sqrt(1 / (width_in * num_layers)))
    else:
        nn.init.zeros_(w.weight)
    if w.bias is not None:
        nn.init.ones_(w.bias)


def num_weights(*, width_in: int, width: int, gated: bool, gate_start: GateStart = "open") -> int:
    """Weights of one adapter: three projections of D x R and, if gated, one row of D and, where it
    starts open, b."""
    gate = width_in + (gate_start == "open") if gated else 0
    return 3 * width_in * width + gate


def width_for_budget(
    budget: float,
    *,
    num_backbone_weights: int,
    width_in: int,
    num_adapters: int,
    gated: bool,
    gate_start: GateStart = "open",
) -> int:
    """R such that all adapters together have `budget` times the backbone's weights, embeddings
    counted.

    R is rounded to the largest power of two up to 128 that keeps the true share within 2 % of the
    budget, because matrix products are fast on such multiples.

    Raises:
        UserError: if the budget is not positive, or so small that no whole width comes within 2 %
            of it.
    """
    if not budget > 0:
        raise UserError("budget", got=budget, allowed="a share above 0, for example 0.20")

    def total(width: int) -> int:
        return num_adapters * num_weights(
            width_in=width_in, width=width, gated=gated, gate_start=gate_start
        )

    wanted = budget * num_backbone_weights
    exact = (wanted - total(0)) / (num_adapters * 3 * width_in)
    for multiple in (128, 64, 32, 16, 8, 4, 2, 1):
        width = round(exact / multiple) * multiple
        if width > 0 and abs(total(width) - wanted) <= BUDGET_TOLERANCE * wanted:
            return width
    nearest_width = max(1, round(exact))
    raise UserError(
        "budget cannot be met within 2 % by a whole adapter width",
        got=budget,
        do=(
            f"the nearest is {total(nearest_width) / num_backbone_weights:.5f} (width"
            f" {nearest_width}); set that, or set width"
        ),
    )
