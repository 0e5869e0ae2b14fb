"""Fuses an extended feed-forward block into one wider gated MLP, for inference, with as many large
matrix products as the backbone's.

    FFN(x) + sum_n g_n A_n(x)
        = [W_down W_o1 .. W_on] . [ act(W_gate x) * (W_up x) ; g_1 h_1 ; .. ; g_n h_n ]
    h_n = act_n(W_g x) * (W_i x);  g_n from w x, or from the gate that reads tokens

It is experimental because it has not been shown to help: on a CPU, skipping tokens with closed
gates is as fast or faster. A fused block that skipped them too took 1.01 of the backbone's time in
decoding source text, 0.98 in its prefill and 1.24 in decoding target text, against 1.01, 1.00 and
1.21 with skipping alone (0.44 B weights; LAB.md, "speed of training and running, memory, and what
did not pay"). This one therefore computes every token, which suits a GPU or a compiler; it has not
been measured on a GPU.

Outputs are those of the unfused model up to rounding (new weights are cast to the backbone's
dtype). Fusing needs memory for one more block. The rows of a batch can still have different
adapters (`per_request`). Training or saving a fused model raises a UserError.

Suffixes: N tokens of a pass, D width of the model, F of the FFN, R of an adapter.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.config.choices import BlockGate
from neutral_residues.errors import UserError
from neutral_residues.tuner.embeddings import EmbeddingsLayer
from neutral_residues.tuner.gated_mlp import GatedMLP, as_gated_mlp
from neutral_residues.tuner.layer import NeutralResiduesLayer, residue_layers
from neutral_residues.tuner.neutral import Gate, GatedAdapter
from neutral_residues.tuner.routing import RoutableModule
from neutral_residues.tuner.thresholds import Threshold


class _Part(NamedTuple):
    """What one adapter needs between the two matrix products."""

    name: str
    kind: BlockGate
    activation: nn.Module
    gate_is_given: bool
    threshold: Threshold | None


class FusedBlock(nn.Module, RoutableModule):
    """A feed-forward block fused with its residues. It has copies of their weights."""

    # (2F + sum over adapters of 2R + 1, D): W_gate, W_up, then for each adapter W_g, W_i and, if it
    # has its own gate, w.
    wide_in: Tensor
    wide_out: Tensor  # (D, F + sum over adapters of R): W_down, then W_o of each adapter
    bias_in: Tensor | None  # one number for each row of wide_in
    bias_out: Tensor | None  # (D)

    def __init__(
        self,
        mlp: GatedMLP,
        adapters: Mapping[str, GatedAdapter],
        embeddings: EmbeddingsLayer | None,
    ) -> None:
        super().__init__()
        self.activation = mlp.activation
        self._embeddings = (embeddings,)  # in a tuple, so that it is not registered as a submodule
        self.parts = [
            _Part(name, a.kind, a.activation, a.gate_is_given, a.threshold)
            for name, a in adapters.items()
        ]
        inner, outer = [mlp.gate, mlp.up], [mlp.down]
        for adapter in adapters.values():
            inner += [adapter.gate, adapter.up]
            inner += [] if adapter.block_gate is None else [adapter.block_gate]
            outer.append(adapter.down)
        self.widths = [linear.out_features for linear in inner]
        like = mlp.gate.weight
        tensors = {
            "wide_in": torch.cat([linear.weight.detach().to(like) for linear in inner]),
            "wide_out": torch.cat([linear.weight.detach().to(like) for linear in outer], dim=1),
            "bias_in": _biases(inner, like=like),
            "bias_out": _biases([mlp.down], like=like),
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.eval()

    def known_adapters(self) -> list[str]:
        """Names of the adapters that were fused."""
        return [part.name for part in self.parts]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) -> (..., D). Raises a UserError in training mode with gradients."""
        if self.training and torch.is_grad_enabled():
            do = "train the extension itself, and fuse it again"
            raise UserError("a fused model cannot train", do=do)
        x_ND = hidden_states.flatten(0, -2)
        rows = list(F.linear(x_ND, self.wide_in, self.bias_in).split(self.widths, dim=1))
        hidden = [self.activation(rows.pop(0)) * rows.pop(0)]
        for part in self.parts:
            residue = part.activation(rows.pop(0)) * rows.pop(0)
            if part.gate_is_given:
                residue = residue * self._given_gate(part.name, hidden_states)
            elif part.kind != "none":
                residue = residue * Gate.of(part.kind, rows.pop(0), part.threshold).gate
            if self.routing is not None:
                tokens_N = self.routing.tokens(part.name, hidden_states)
                residue = residue * x_ND.new_zeros(len(x_ND), 1).index_fill(0, tokens_N, 1.0)
            hidden.append(residue)
        out_ND = F.linear(torch.cat(hidden, dim=1), self.wide_out, self.bias_out)
        return out_ND.view(hidden_states.shape)

    def _given_gate(self, name: str, hidden_states: Tensor) -> Tensor:
        """(N, 1) the gate that reads tokens, which all layers of the extension share."""
        (embeddings,) = self._embeddings
        assert embeddings is not None
        return embeddings.gate_at(name, hidden_states).gate.flatten(0, -2).to(hidden_states.dtype)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_to_save()


def _biases(linears: list[nn.Linear], *, like: Tensor) -> Tensor | None:
    """The concatenated biases, 0 for layers without one; None if no layer has one."""
    if all(linear.bias is None for linear in linears):
        return None
    rows = [like.new_zeros(m.out_features) if m.bias is None else m.bias.to(like) for m in linears]
    return torch.cat(rows).detach()


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Fuse active residues with their feed-forward blocks, in place, and return the model without
    PEFT's wrapper.

    Residues parallel to other blocks (mixture of experts, MLPs without a gate, quantised ones) and
    to the output head are not changed.

    Raises:
        UserError: if there is nothing to fuse: no enabled residues, or no plain gated MLP.
    """
    names = [name for name, layer in residue_layers(model).items() if layer.active_names()]
    if not names:
        what = "the model has no enabled neutral residues to fuse"
        raise UserError(what, do="load an extension, and enable it")
    if sum(_fold(model, name) for name in names) == 0:
        raise UserError(
            "no feed-forward block of this backbone can be fused",
            got=type(model.get_submodule(names[0]).base_layer).__name__,
            allowed="down(act(gate(x)) * up(x)) as in Llama, Mistral, Qwen or Gemma, not quantised",
            do="run it unfused",
        )
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.save_pretrained = _refuse_to_save  # fails before any file is written
    return inner.eval()


def _fold(model: nn.Module, name: str) -> bool:
    """Replace the block called `name` by a fused one; False if it is not a plain gated MLP."""
    layer = model.get_submodule(name)
    assert isinstance(layer, NeutralResiduesLayer)
    mlp = as_gated_mlp(layer.base_layer)
    if mlp is None:
        return False
    adapters = {n: cast(GatedAdapter, layer.adapter(n)) for n in layer.active_names()}
    fused = FusedBlock(mlp, adapters, layer.embeddings)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, fused)
    return True


def _refuse_to_save(*args: Any, **kwargs: Any) -> NoReturn:
    do = "save the extension itself, or use neutral export"
    raise UserError("a fused model cannot be saved", do=do)
