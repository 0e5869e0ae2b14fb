"""The residue on the output head, ours and not the paper's: a low-rank, gated update of the logits.

    logits(h) = head(h) + g(h) * W_b (W_a h)             h: the final hidden state, normalised
    g(h)      = relu(w . h + b)                          the gate, as in the layers

A frozen head scores tokens only along the directions of the hidden state that pretraining needed.
More than half of what methods with a frozen head fail to learn is due to that (LAB.md, "the head's
rank, and the weight of the local loss").

    symbol   shape   name in checkpoints         meaning
    W_a      K x D   neutral_residues.down       to K numbers per token, the code
    W_b      V x K   neutral_residues.up         from the code to the logits, zero at the start

As the adapters of layers, it runs parallel to a module of the backbone, here its output head: soft
caps and scales are applied after it, and tied embeddings stay as they are.

Promise: a forward pass never stores the residue of V numbers per token. The matrix product adds it
to the backbone's logits in place, and its size is computed from the K x K matrix W_b' W_b.

Suffixes as in `neutral.py`; V vocabulary, K rank, N chosen tokens.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from neutral_residues.config.choices import Init
from neutral_residues.errors import UserError
from neutral_residues.tuner.neutral import Gate, GateChoice, Gated

USUAL_RANK = 64
"""The default rank, if a quarter of the new weights is enough for it (LAB.md, "the head's rank, and
the weight of the local loss")."""

LARGEST_SHARE = 0.25
"""Largest share of the new weights for the head, unless its rank is set."""


class HeadResidue(NamedTuple):
    """The residue of one adapter on the output head; without a gate the others are None."""

    code: Tensor  # (..., K) g(h) * W_a h
    weight: Tensor  # (V, K) W_b
    gate: Tensor | None = None  # (..., 1) g(h)
    gate_logits: Tensor | None = None  # (..., 1) w . h + b
    begun_gate: Tensor | None = None  # `Gate.begun`
    ungated: Tensor | None = None  # (..., K) W_a h, without gradient; only with `begun_gate`

    @property
    def delta(self) -> Tensor:
        """(..., V) what is added to the logits; for checks on a few tokens, as it is large."""
        return self.code @ self.weight.t()

    def added_to(self, output: Tensor, tokens_N: Tensor | None = None) -> Tensor:
        """The logits `output` plus the residue, in place; where the code is 0 they do not change.
        With `tokens_N`, the residue is that of the tokens at these positions only."""
        weight = self.weight.to(output.dtype)
        code = self.code.to(output.dtype).reshape(-1, self.code.shape[-1])
        if tokens_N is None and not torch.compiler.is_compiling():
            return cast(Tensor, _AddInPlace.apply(output, code, weight))
        logits = output.flatten(0, -2)
        if tokens_N is None:
            return logits.addmm_(code, weight.t()).view(output.shape)
        return logits.index_add_(0, tokens_N, code @ weight.t()).view(output.shape)

    def mean_square(self) -> Tensor:
        """(...) the mean of the squares over the vocabulary, in float32."""
        with torch.autocast(self.code.device.type, enabled=False):
            weight, code = self.weight.float(), self.code.float()
            gram_KK = weight.t() @ weight / len(weight)
            return ((code @ gram_KK) * code).sum(-1).clamp(min=0)

    def relative_size(self, logits: Tensor) -> Tensor:
        """(...) sqrt(K) x root mean square over the vocabulary, in float32: the size in the local
        loss (`losses.py`). Logits have the unit of the loss, nats, so the size is not divided by
        that of the backbone's `logits`."""
        # The root of 0 has no derivative, and all residues start at 0.
        size = self.mean_square().clamp(min=1e-24).sqrt()
        return size * math.sqrt(self.code.shape[-1])

    @torch.no_grad()
    def ungated_size(self, logits: Tensor) -> Tensor:
        """(...) `relative_size` that this residue has with a gate of 1, without gradient."""
        assert self.ungated is not None
        return HeadResidue(self.ungated, self.weight).relative_size(logits)

    def plus(self, other: "HeadResidue") -> "HeadResidue":
        """The sum of two residues on the same head; it has no gate."""
        code = torch.cat([self.code, other.code], dim=-1)
        return HeadResidue(code, torch.cat([self.weight, other.weight], dim=-1))


class _AddInPlace(torch.autograd.Function):
    """logits += code W_b'. Autograd's own version, in place through a view, would copy the gradient
    of all logits three times."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, code: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(code, weight)
        ctx.mark_dirty(logits)
        logits.flatten(0, -2).addmm_(code, weight.t())
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        code, weight = ctx.saved_tensors
        d_NV = d_logits.flatten(0, -2)
        d_code = d_NV @ weight if ctx.needs_input_grad[1] else None
        return d_logits, d_code, d_NV.t() @ code if ctx.needs_input_grad[2] else None


class GatedHead(Gated):
    """g(h) * W_b (W_a h), the residue parallel to the output head.

    Args:
        width_in: D, the width of the final hidden state.
        vocabulary: V, the number of logits.
        rank: K.
    """

    def __init__(
        self,
        width_in: int,
        vocabulary: int,
        rank: int,
        gate: GateChoice = GateChoice(),  # noqa: B008 - immutable
    ) -> None:
        super().__init__(width_in, gate)
        self.down = nn.Linear(width_in, rank, bias=False)
        self.up = nn.Linear(rank, vocabulary, bias=False)
        self.block_gate = gate.linear(width_in)

    def forward(self, h: Tensor, gate: Gate | None = None) -> HeadResidue:
        """(..., D) -> the residue at each token, with the given gate or, by default, its own."""
        code: Tensor = self.down(h)
        gate = gate or self.gate_of(h)
        if gate is None:
            return HeadResidue(code, self.up.weight)
        ungated = None if gate.begun is None else code.detach()
        return HeadResidue(gate.gate * code, self.up.weight, *gate, ungated)

    @torch.no_grad()
    def reset_parameters(self, *, num_layers: int, init: Init = "usual") -> None:
        """Initialise for training. W_b = 0, so at step 0 the logits are the backbone's; W_a and the
        gate start as in a layer (`GatedAdapter.reset_parameters`)."""
        low_variance = 1 / (self.width_in * num_layers)
        variance = low_variance if init == "paper" else 2 / self.width_in
        nn.init.normal_(self.down.weight, std=math.sqrt(variance))
        nn.init.zeros_(self.up.weight)
        self.reset_gate(variance=low_variance)


def num_head_weights(width_in: int, vocabulary: int, rank: int, gate: GateChoice) -> int:
    """Number of weights of a residue on the head: two projections and the gate; 0 for rank 0."""
    return rank * (width_in + vocabulary) + gate.num_weights(width_in) if rank else 0


def usual_rank(num_new_weights: float, width_in: int, vocabulary: int) -> int:
    """The default of K: `USUAL_RANK`, or less if that needs over a quarter of the new weights."""
    return min(USUAL_RANK, int(LARGEST_SHARE * num_new_weights / (width_in + vocabulary)))


def check_rank(rank: int, num_new_weights: float, width_in: int, vocabulary: int) -> None:
    """Raise a UserError if a residue of rank `rank` uses all of the new weights."""
    most = math.ceil(num_new_weights / (width_in + vocabulary)) - 1
    if rank > most:
        what = "head_rank leaves nothing of the budget to the layers"
        raise UserError(what, got=rank, allowed=f"up to {most}, 0 for no residue on the head")
