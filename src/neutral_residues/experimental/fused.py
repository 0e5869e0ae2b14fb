"""An extended feed-forward block as one wider gated MLP, for inference: as many large matrix
products as the backbone's.

    FFN(x) + sum_n g_n A_n(x)
        = [W_down W_o1 .. W_on] . [ act(W_gate x) * (W_up x) ; g_1 h_1 ; .. ; g_n h_n ]
    h_n = act_n(W_g x) * (W_i x);  g_n from w x, or the gate that reads the text

Why it is experimental: it has not been shown to pay. On a CPU skipping alone is as fast or faster.
A fused block that skipped closed gates too took 1.01 of the backbone's time in decoding source
text, 0.98 in its prefill and 1.24 in decoding target text, against 1.01, 1.00 and 1.21 with
skipping alone (0.44 B weights; LAB.md, "speed of training and running, memory, and what did not
pay"). So this one computes every token, as suits a GPU or a
compiler; on a GPU it was never measured.

Promises: outputs equal the plain path's up to rounding (new weights are cast to the backbone's
dtype); memory at no time exceeds the model's own by more than one block; each row of a batch may
still name its own adapter (`per_request`). To train or save a fused model is an error.

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
    """What one adapter computes between the two products."""

    name: str
    kind: BlockGate
    activation: nn.Module
    gate_is_given: bool
    threshold: Threshold | None


class FusedBlock(nn.Module, RoutableModule):
    """A feed-forward block with residues folded in, made from copies."""

    # (2F + sum of 2R + 1 gate, D): W_gate, W_up, then W_g, W_i, and its own w of each adapter
    wide_in: Tensor
    wide_out: Tensor  # (D, F + sum of R): W_down, then W_o of each adapter
    bias_in: Tensor | None  # (2F + ..)
    bias_out: Tensor | None  # (D)

    def __init__(
        self,
        mlp: GatedMLP,
        adapters: Mapping[str, GatedAdapter],
        embeddings: EmbeddingsLayer | None,
    ) -> None:
        super().__init__()
        self.activation = mlp.activation
        self._embeddings = (embeddings,)  # not a part of this module
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
        """The adapters that were folded in."""
        return [part.name for part in self.parts]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., D) -> (..., D); a UserError if asked to train."""
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
        """(N, 1) that of the whole extension, which reads the text."""
        (embeddings,) = self._embeddings
        assert embeddings is not None
        return embeddings.gate_at(name, hidden_states).gate.flatten(0, -2).to(hidden_states.dtype)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_to_save()


def _biases(linears: list[nn.Linear], *, like: Tensor) -> Tensor | None:
    """All biases in a row, 0 where there is none; None where no layer has one."""
    if all(linear.bias is None for linear in linears):
        return None
    rows = [like.new_zeros(m.out_features) if m.bias is None else m.bias.to(like) for m in linears]
    return torch.cat(rows).detach()


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Fold the active residues into wider feed-forward blocks, in place, and return the model
    without PEFT's wrapper.

    Residues parallel to other blocks (sparse, not gated, quantised) and to the output head stay as
    they are.

    Raises:
        UserError: if there is nothing to fold: no enabled residues, or no plain gated MLP.
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
    inner.save_pretrained = _refuse_to_save  # before it writes the first of its files
    return inner.eval()


def _fold(model: nn.Module, name: str) -> bool:
    """Replace that block by its fused form, if it has one; the old one is then free to go."""
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
