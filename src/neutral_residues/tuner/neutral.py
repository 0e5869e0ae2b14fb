"""The paper in one file: gated residues parallel to the blocks of a frozen language model.

Talla, Grave, Jegou, *Neutral Residues: Revisiting Adapters for Model Extension*, arXiv 2410.02744
(ICML 2025).

In every layer a small gated adapter runs parallel to the feed-forward block (FFN), on the FFN's own
input x:

    out(x) = FFN(x) + g(x) * A(x)                        section 3, "Architecture"
    A(x)   = W_o ( act(W_g x) * (W_i x) )                a GLU without biases
    g(x)   = relu(w . x + b)                             the block gate; also elu, sigmoid, none

The local loss trains g(x) * A(x) to be (near) zero on the source domain (see `losses.py`), so that
the model keeps the backbone's outputs there.

    symbol   shape   name in checkpoints               meaning
    x        D       -                                 the FFN's input at one token
    W_g      R x D   neutral_residues.gate             projection inside the activation
    W_i      R x D   neutral_residues.up               the other projection
    W_o      D x R   neutral_residues.down             output projection, zero at the start
    w, b     1 x D   neutral_residues.block_gate       the block gate; b is ours, see below

Suffixes: B rows, T tokens, D model width, R adapter width, 1 one number per token.

This file does not depend on the backbone: `layer.py` and `model.py` attach adapters to one.

Where we choose (the paper, as far as it is known, leaves these open):

- The block gate is one number per token and layer.
- The gate starts open: w = 0 and b = 1, so g = 1 on every token. The adapter learns from the first
  step as if it had no gate, and the local loss then closes the gate where the text is source. With
  w random and no b ("random"), half of all tokens start with a closed gate and learn nothing there;
  LAB.md, "what moved the curve, and what did not", has both, and open gates do not die.
- A sigmoid gate can also start "half": w = 0 and no b, so g = 1/2 on every token. Without b the
  layer is exactly a mixture-of-experts layer with a gated shared expert, which stock runtimes have.
  ReLU and ELU cannot start there: they are 0 at 0, and with W_o = 0 as well no weight would ever
  have a gradient.
- The inner projections start with the usual variance 2/D by default: with a gate that starts open,
  this learns more than the paper's 1/(D L), and does not forget more.
- The activation inside A is that of the backbone unless set.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.config.choices import BlockGate, GateReads, GateStart, Init
from neutral_residues.errors import UserError
from neutral_residues.tuner.thresholds import Threshold

PREFIX = "neutral_residues"
"""Name of the adapters' ModuleDict in a layer, and so in checkpoints."""

BUDGET_TOLERANCE = 0.02
"""Largest relative error of the share of new weights; budgets that cannot be met are refused."""

GATES: dict[BlockGate, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "elu": F.elu,
    "sigmoid": torch.sigmoid,
}
"""g from the logit w . x + b, elementwise. Only relu can be exactly 0: for every logit up to 0."""


class Residue(NamedTuple):
    """The residue of one adapter: what it adds to the output of one block. Without a gate the
    others are None."""

    delta: Tensor  # (..., D) g(x) * A(x), to be added to the FFN's output
    gate: Tensor | None = None  # (..., 1) g(x)
    gate_logits: Tensor | None = None  # (..., 1) w . x + b
    begun_gate: Tensor | None = None  # `Gate.begun`
    ungated: Tensor | None = None  # (..., D) A(x), without gradient; only with `begun_gate`

    def added_to(self, output: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        """`output` plus the residue. With `tokens_N`, the residue is that of the tokens at these
        positions only, in row-major order. Not in place, because some backbones write into the
        output of their blocks."""
        delta = self.delta.to(output.dtype)
        if tokens_N is None:
            return output + delta.reshape(output.shape)
        return output.flatten(0, -2).index_add(0, tokens_N, delta).view(output.shape)

    def relative_size(self, block_output: Tensor) -> Tensor:
        """(...) L1 norm of the residue divided by the Euclidean norm of the block's own output
        (..., D), through which no gradient flows; a ratio, in float32."""
        norm = torch.linalg.vector_norm(self.delta, ord=1, dim=-1, dtype=torch.float32)
        own = torch.linalg.vector_norm(block_output.detach(), dim=-1, dtype=torch.float32)
        return norm / torch.where(own > 0, own, 1).reshape(norm.shape)

    @torch.no_grad()
    def ungated_size(self, block_output: Tensor) -> Tensor:
        """(...) `relative_size` that this residue has with a gate of 1, without gradient."""
        assert self.ungated is not None
        return Residue(self.ungated).relative_size(block_output)

    def mean_square(self) -> Tensor:
        """(...) mean of the squares over D, in float32."""
        return self.delta.float().square().mean(-1)

    def plus(self, other: "Residue") -> "Residue":
        """The sum of two residues of the same block; it has no gate."""
        return Residue(self.delta + other.delta)


class GateChoice(NamedTuple):
    """Settings of the gate: its kind ("none" for a gate-less adapter), how it starts (it has a bias
    b only if it starts open), and what it reads."""

    kind: BlockGate = "relu"
    start: GateStart = "open"
    reads: GateReads = "layer"  # "tokens": a gate for the whole extension, see `reader.py`

    @property
    def is_own(self) -> bool:
        """Whether each adapter has a block gate of its own."""
        return self.kind != "none" and self.reads == "layer"

    @property
    def is_given(self) -> bool:
        """Whether adapters get the gate of their whole extension as an argument."""
        return self.kind != "none" and self.reads == "tokens"

    def linear(self, width_in: int) -> nn.Linear | None:
        """A new layer with w and, if the gate starts open, b; None without a block gate."""
        return nn.Linear(width_in, 1, bias=self.start == "open") if self.is_own else None

    def num_weights(self, width_in: int) -> int:
        """Number of weights of `linear`."""
        return width_in + (self.start == "open") if self.is_own else 0


class Gate(NamedTuple):
    """A gate and its logits, one number per token each."""

    gate: Tensor  # (..., 1) g
    logits: Tensor  # (..., 1) w . x + b; with a threshold, after it was applied
    begun: Tensor | None = None  # (..., 1) only in training: the second gate of `reader.py`

    @classmethod
    def of(
        cls,
        kind: BlockGate,
        logits: Tensor,
        threshold: Threshold | None = None,
        mean_gate: Tensor | None = None,
    ) -> "Gate":
        """The gate of these logits.

        Args:
            threshold: of a calibrated extension; applied to the logits.
            mean_gate: mean of the gates over the last tokens, if the threshold is compared with it.
        """
        if threshold is not None:
            logits = threshold.applied_to(logits, mean_gate)
        return cls(GATES[kind](logits), logits)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Gate":
        """The same gate with each of its tensors changed."""
        begun = None if self.begun is None else change(self.begun)
        return Gate(change(self.gate), change(self.logits), begun)


class Gated(nn.Module):
    """Base class of modules with a block gate g(x), which may be None; `width_in` is D."""

    block_gate: nn.Linear | None

    def __init__(self, width_in: int, gate: GateChoice) -> None:
        super().__init__()
        self.width_in = width_in
        self.kind, self.gate_start = gate.kind, gate.start
        self.gate_is_given = gate.is_given
        self.threshold: Threshold | None = None

    def gate_of(self, x: Tensor) -> Gate | None:
        """(..., D) -> its block gate; None if it has none."""
        if self.block_gate is None:
            return None
        return Gate.of(self.kind, self.block_gate(x), self.threshold)

    def reset_gate(self, *, variance: float) -> None:
        """Initialise the block gate: w at random with this variance if it starts "random", else
        w = 0; b = 1."""
        if self.block_gate is None:
            return
        if self.gate_start == "random":
            nn.init.normal_(self.block_gate.weight, std=math.sqrt(variance))
        else:
            nn.init.zeros_(self.block_gate.weight)
        if self.block_gate.bias is not None:
            nn.init.ones_(self.block_gate.bias)


class GatedAdapter(Gated):
    """g(x) * A(x), the adapter parallel to one block. Paper: section 3, "Architecture".

    Its weights are those of a fresh `nn.Linear` until `reset_parameters` is called.

    Args:
        width_in: D, the width of the block's input.
        width: R, the width of the adapter.
        gate: settings of the block gate.
        activation: activation inside A, a module without weights.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        gate: GateChoice = GateChoice(),  # noqa: B008 - immutable
        *,
        activation: nn.Module,
    ) -> None:
        super().__init__(width_in, gate)
        self.gate = nn.Linear(width_in, width, bias=False)
        self.up = nn.Linear(width_in, width, bias=False)
        self.down = nn.Linear(width, width_in, bias=False)
        self.block_gate = gate.linear(width_in)
        self.activation = activation

    def forward(self, x: Tensor, gate: Gate | None = None) -> Residue:
        """(..., D) -> the residue at each token, with the given gate or, by default, its own."""
        adapter: Tensor = self.down(self.activation(self.gate(x)) * self.up(x))
        gate = gate or self.gate_of(x)
        if gate is None:
            return Residue(adapter)
        ungated = None if gate.begun is None else adapter.detach()
        return Residue(gate.gate * adapter, *gate, ungated)

    @torch.no_grad()
    def reset_parameters(self, *, num_layers: int, init: Init = "usual") -> None:
        """Initialise for training. W_o = 0, so at step 0 the extended model *is* the backbone.

        `init="paper"`: W_g and W_i have variance 1/(D L), L the number of layers with an adapter:
        the paper's "low variance" (section 3, "Initialisation"); `init="usual"`: 2/D. A gate that
        starts at random has variance 1/(D L); the others start with w = 0.
        """
        low_variance = 1 / (self.width_in * num_layers)
        variance = low_variance if init == "paper" else 2 / self.width_in
        nn.init.normal_(self.gate.weight, std=math.sqrt(variance))
        nn.init.normal_(self.up.weight, std=math.sqrt(variance))
        nn.init.zeros_(self.down.weight)
        self.reset_gate(variance=low_variance)


def num_weights(width_in: int, width: int, gate: GateChoice) -> int:
    """Number of weights of one adapter: three projections of D x R, and the gate."""
    return 3 * width_in * width + gate.num_weights(width_in)


def width_for_budget(
    budget: float,
    *,
    num_backbone_weights: int,
    width_in: int,
    num_adapters: int,
    gate: GateChoice,
    num_other_weights: int = 0,
) -> int:
    """The adapter width R for which the new weights are `budget` times those of the backbone.

    R is a multiple of the largest power of two, up to 128, that keeps the share within 2 % of the
    budget, because matrix products are fast on such multiples.

    Args:
        budget: new weights as a share of the backbone's.
        num_backbone_weights: embeddings included.
        width_in: D.
        num_adapters: number of blocks with an adapter.
        gate: settings of their gates.
        num_other_weights: new weights outside these adapters: head, reader, new tokens.

    Raises:
        UserError: if no whole R comes within 2 % of the budget; names the nearest.
    """

    def total(width: int) -> int:
        return num_adapters * num_weights(width_in, width, gate) + num_other_weights

    wanted = budget * num_backbone_weights
    exact = (wanted - total(0)) / (num_adapters * 3 * width_in)
    for multiple in (128, 64, 32, 16, 8, 4, 2, 1):
        width = round(exact / multiple) * multiple
        if width > 0 and abs(total(width) - wanted) <= BUDGET_TOLERANCE * wanted:
            return width
    width = max(1, round(exact))
    what = "budget cannot be met within 2 % by a whole adapter width"
    nearest = f"{total(width) / num_backbone_weights:.5f} (width {width})"
    raise UserError(what, got=budget, do=f"the nearest is {nearest}; set that, or set width")
