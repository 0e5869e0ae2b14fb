"""An extended feed-forward block as one wider gated MLP, for inference: as many large matrix
products as the backbone's.

    FFN(x) + sum_n g_n A_n(x)
        = [W_down W_o1 .. W_on] . [ act(W_gate x) * (W_up x) ; g_1 h_1 ; .. ; g_n h_n ]
    h_n = act_n(W_g x) * (W_i x)

Why it is experimental: it has not been shown to pay. On a CPU (LAB.md, 0.44 B weights, time by the
backbone's) decoding source text costs 1.01, prefill of it 0.98 and decoding target text 1.24,
against 1.21 for the latter with skipping alone; on a GPU it was never measured.

`fuse(model)` folds the active residues of every block that is a plain gated MLP (`gated_mlp.py`).
The rows of the first product are ordered so that what every token needs comes first: [W_gate; W_up;
w_1; ..; w_n], then each adapter's [W_g; W_i]. On a CPU, where the host may read the gates, an
adapter whose gates are all 0 is therefore not read, and tokens are gathered as in `layer.py`; on a
GPU, and compiled, everything is computed in two products without waiting.

Promises: outputs equal the plain path's up to rounding (new weights are cast to the backbone's
dtype); memory at no time exceeds the model's own by more than one block; each row of a batch may
still name its own adapter (`per_request`). To train or save a fused model is an error.

Suffixes: N tokens of a pass, D width of the model, F of the FFN, R of an adapter.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.config.choices import BlockGate
from neutral_residues.errors import UserError
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp
from neutral_residues.tuner.layer import NeutralResiduesLayer, residue_layers
from neutral_residues.tuner.neutral import GATES, GatedAdapter
from neutral_residues.tuner.routing import RoutableModule
from neutral_residues.tuner.skipping import active_token_indices, can_skip


class _Slot(NamedTuple):
    """Where one adapter lies in a fused block: the index of its gate (None: gate-less), the rows of
    its W_g and W_i in `wide_in`, the columns of its W_o in `wide_out`."""

    kind: BlockGate
    activation: nn.Module
    gate: int | None
    rows: slice
    columns: slice


class FusedBlock(nn.Module, RoutableModule):
    """A feed-forward block with residues folded in; made from copies, so the originals can be
    dropped.

    Attributes:
        wide_in: (2F + gates + 2 sum R, D).
        wide_out: (D, F + sum R).
        bias_in: (2F + gates) of what every token needs, or None.
        bias_out: (D) or None.
    """

    wide_in: Tensor
    wide_out: Tensor
    bias_in: Tensor | None
    bias_out: Tensor | None

    def __init__(self, mlp: GatedMLP, adapters: Mapping[str, GatedAdapter]) -> None:
        super().__init__()
        self.activation = mlp.activation
        self.width = mlp.gate.out_features
        gates = [a.block_gate for a in adapters.values() if a.block_gate is not None]
        shared = [mlp.gate, mlp.up, *gates]
        inner = [linear for a in adapters.values() for linear in (a.gate, a.up)]
        outer = [mlp.down, *(a.down for a in adapters.values())]
        self.num_shared = 2 * self.width + len(gates)
        self.slots = self._slots(adapters)
        for name, value in {
            "wide_in": torch.cat(_weights([*shared, *inner], like=mlp.gate.weight)),
            "wide_out": torch.cat(_weights(outer, like=mlp.gate.weight), dim=1),
            "bias_in": _biases(shared, like=mlp.gate.weight),
            "bias_out": _biases([mlp.down], like=mlp.gate.weight),
        }.items():
            self.register_buffer(name, value, persistent=False)
        self.eval()

    def _slots(self, adapters: Mapping[str, GatedAdapter]) -> dict[str, _Slot]:
        slots: dict[str, _Slot] = {}
        row, column, gate = self.num_shared, self.width, 0
        for name, adapter in adapters.items():
            width, gated = adapter.gate.out_features, adapter.block_gate is not None
            slots[name] = _Slot(
                adapter.kind,
                adapter.activation,
                gate if gated else None,
                rows=slice(row, row + 2 * width),
                columns=slice(column, column + width),
            )
            row, column, gate = row + 2 * width, column + width, gate + gated
        return slots

    def known_adapters(self) -> list[str]:
        """The adapters that were folded in."""
        return list(self.slots)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) -> (..., D).

        Raises:
            UserError: if asked to train.
        """
        if self.training and torch.is_grad_enabled():
            raise UserError(
                "a fused model cannot train", do="train the extension itself, and fuse it again"
            )
        x_ND = hidden_states.flatten(0, -2)
        if self.routing is not None or (x_ND.is_cpu and not torch.compiler.is_compiling()):
            return self._forward_split(hidden_states, x_ND).view(hidden_states.shape)
        return self._forward_single_matmul(x_ND).view(hidden_states.shape)

    def _forward_single_matmul(self, x_ND: Tensor) -> Tensor:
        """Everything for every token, in two products."""
        widths = [slot.rows.stop - slot.rows.start for slot in self.slots.values()]
        shared, *inner = F.linear(x_ND, self.wide_in).split([self.num_shared, *widths], dim=1)
        if self.bias_in is not None:
            shared = shared + self.bias_in
        gate, up, logits = shared.tensor_split([self.width, 2 * self.width], dim=1)
        parts = [self.activation(gate) * up]
        for both, slot in zip(inner, self.slots.values(), strict=True):
            gate, up = both.chunk(2, dim=1)
            parts.append(_gated(gate, up, logits, slot))
        return F.linear(torch.cat(parts, dim=1), self.wide_out, self.bias_out)

    def _forward_split(self, hidden_states: Tensor, x_ND: Tensor) -> Tensor:
        """What every token needs, then each adapter for the tokens that need it.

        Each product by itself: the halves of a wide one lie strided in memory, and a CPU pays for
        that at every step.
        """
        width, end = self.width, self.num_shared
        gate, up, logits = (
            self._inner(x_ND, a, b) for a, b in ((0, width), (width, 2 * width), (2 * width, end))
        )
        out_ND = F.linear(self.activation(gate) * up, self.wide_out[:, :width], self.bias_out)
        for name, slot in self.slots.items():
            tokens_N = self._tokens_to_compute(hidden_states, logits, name)
            if tokens_N is None:
                out_ND = out_ND + self._delta(x_ND, logits, slot)
            elif len(tokens_N):
                delta_ND = self._delta(x_ND[tokens_N], logits[tokens_N], slot)
                out_ND = out_ND.index_add(0, tokens_N, delta_ND)
        return out_ND

    def _inner(self, x_ND: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the first product; only those that every token needs have a
        bias."""
        has_bias = self.bias_in is not None and start < self.num_shared
        bias = self.bias_in[start:stop] if has_bias else None  # type: ignore[index]
        return F.linear(x_ND, self.wide_in[start:stop], bias)

    def _delta(self, x_ND: Tensor, logits: Tensor, slot: _Slot) -> Tensor:
        start, stop = slot.rows.start, slot.rows.stop
        middle = (start + stop) // 2
        gate, up = self._inner(x_ND, start, middle), self._inner(x_ND, middle, stop)
        return F.linear(_gated(gate, up, logits, slot), self.wide_out[:, slot.columns])

    def _tokens_to_compute(self, hidden_states: Tensor, logits: Tensor, name: str) -> Tensor | None:
        """Positions of the tokens to compute; None means all."""
        slot = self.slots[name]
        tokens_N = None if self.routing is None else self.routing.tokens(name, hidden_states)
        if slot.gate is None or not can_skip(slot.kind, logits):
            return tokens_N
        gate_logits = logits[:, slot.gate]
        gate_logits = gate_logits if tokens_N is None else gate_logits[tokens_N]
        return active_token_indices(gate_logits, tokens_N)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_to_save()


def _gated(gate: Tensor, up: Tensor, logits: Tensor, slot: _Slot) -> Tensor:
    """g * h: (N, R)."""
    hidden: Tensor = slot.activation(gate) * up
    if slot.gate is None:
        return hidden
    return hidden * GATES[slot.kind](logits[:, slot.gate : slot.gate + 1])


def _weights(linears: Sequence[nn.Linear], *, like: Tensor) -> list[Tensor]:
    return [linear.weight.detach().to(like.device, like.dtype) for linear in linears]


def _biases(linears: Sequence[nn.Linear], *, like: Tensor) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    zeros = [like.new_zeros(linear.out_features) for linear in linears]
    return torch.cat(
        [
            zero if linear.bias is None else linear.bias.detach().to(zero)
            for zero, linear in zip(zeros, linears, strict=True)
        ]
    )


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Fold the active residues into wider feed-forward blocks, in place, and return the model
    without PEFT's wrapper.

    Residues parallel to other blocks (sparse, not gated, quantised) stay as they are.

    Raises:
        UserError: if there is nothing to fold: no enabled residues, or no block that is a plain
            gated MLP.
    """
    names = [name for name, layer in residue_layers(model).items() if layer.active_names()]
    if not names:
        raise UserError(
            "the model has no enabled neutral residues to fuse",
            do="load an extension, and enable it",
        )
    if sum(_fold(model, name) for name in names) == 0:
        raise UserError(
            "no feed-forward block of this backbone can be fused",
            got=type(model.get_submodule(names[0]).base_layer).__name__,
            allowed="down(act(gate(x)) * up(x)) as in Llama, Mistral, Qwen or Gemma, not quantised",
            do="run it unfused",
        )
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.save_pretrained = _refuse_to_save  # before it writes the first of its files
    return inner.eval()


def _fold(model: nn.Module, name: str) -> bool:
    """Replace that block by its fused form, if it has one; the old one is then free to go."""
    layer = model.get_submodule(name)
    assert isinstance(layer, NeutralResiduesLayer)
    mlp = as_gated_mlp(layer.base_layer)
    if mlp is None:
        return False
    fused = FusedBlock(mlp, {active: layer.adapter(active) for active in layer.active_names()})
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, fused)
    return True


def _refuse_to_save(*args: Any, **kwargs: Any) -> NoReturn:
    raise UserError(
        "a fused model cannot be saved", do="save the extension itself, or use neutral export"
    )
