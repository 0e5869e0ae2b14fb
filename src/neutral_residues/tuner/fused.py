"""An extended feed-forward block as one wider gated unit, for running: as many large matrix
products as the backbone's.

    FFN(x) + sum_n g_n A_n(x) = [W_down W_o1 .. W_on] . [ act(W_gate x) * (W_up x) ; g_1 b_1 ; .. ;
    g_n b_n ] b_n = act_n(W_g x) * (W_i x)

`fuse(model)` folds the active residues of every block that is a plain gated unit (`glu.py`). The
rows of the first product are ordered so that what every token needs comes first: [W_gate; W_up;
w_1; ..; w_n], then each adapter's [W_g; W_i]. On a CPU, where the host may look at the gates, an
adapter whose gates are all 0 is therefore not read, and tokens are gathered as in `layer.py`; on a
GPU, and compiled, everything is computed in two products without waiting.

Promises: outputs equal the plain path's up to rounding (new weights are cast to the backbone's
dtype); memory at no time exceeds the model's own by more than one block; each row of a batch may
still ask for its own adapter (`per_request`). To train or save a fused model is an error.

Suffixes: N tokens of a pass, D width of the model, F of the FFN, R of an adapter, E = F and all R.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.errors import UserError
from neutral_residues.tuner.gated_mlp import Glu, plain_glu
from neutral_residues.tuner.layer import Adapter, NeutralResiduesLayer, residue_layers
from neutral_residues.tuner.neutral import BlockGate, block_gate
from neutral_residues.tuner.skipping import AnswersRequests, can_skip, open_tokens


class _Place(NamedTuple):
    """Where one adapter lies in a fused block."""

    name: str
    kind: BlockGate
    activation: nn.Module
    gate: int | None
    """Which of the gates is its own."""
    rows: slice
    """Rows of its W_g and W_i in `wide_in`."""
    columns: slice
    """Columns of its W_o in `wide_out`."""


class FusedBlock(nn.Module, AnswersRequests):
    """A feed-forward block with residues folded in; made from copies, so the originals can be
    dropped.

    Attributes:
        wide_in: (2F + gates + 2 sum R, D).
        wide_out: (D, E).
        bias_in: (2F + gates) of what every token needs, or None.
        bias_out: (D) or None.
    """

    wide_in: Tensor
    wide_out: Tensor
    bias_in: Tensor | None
    bias_out: Tensor | None

    def __init__(self, glu: Glu, adapters: Sequence[Adapter]) -> None:
        super().__init__()
        self.activation = glu.activation
        self.width = glu.gate.out_features
        gates = [adapter.w for adapter in adapters if adapter.w is not None]
        inner = [w for adapter in adapters for w in (adapter.w_g, adapter.w_i)]
        self.num_shared = 2 * self.width + len(gates)
        self.places = _places(adapters, width=self.width, num_shared=self.num_shared)
        like = glu.gate.weight
        self._hold("wide_in", _stacked([glu.gate, glu.up, *gates, *inner], like, dim=0))
        self._hold(
            "wide_out", _stacked([glu.down, *(adapter.w_o for adapter in adapters)], like, dim=1)
        )
        self._hold("bias_in", _biases([glu.gate, glu.up, *gates], like))
        self._hold("bias_out", _biases([glu.down], like))
        self.eval()

    def _hold(self, name: str, value: Tensor | None) -> None:
        self.register_buffer(name, value, persistent=False)

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
        in_parts = self.requests is not None or (x_ND.is_cpu and not torch.compiler.is_compiling())
        out_ND = self._in_parts(hidden_states, x_ND) if in_parts else self._at_once(x_ND)
        return out_ND.view(hidden_states.shape)

    def known_adapters(self) -> list[str]:
        """The adapters that were folded in."""
        return [place.name for place in self.places]

    def _at_once(self, x_ND: Tensor) -> Tensor:
        """Everything for every token, in two products."""
        shared, *inner = F.linear(x_ND, self.wide_in).split(
            [self.num_shared, *(place.rows.stop - place.rows.start for place in self.places)], dim=1
        )
        if self.bias_in is not None:
            shared = shared + self.bias_in
        gate, up, logits = shared.split(
            [self.width, self.width, self.num_shared - 2 * self.width], dim=1
        )
        parts = [self.activation(gate) * up]
        for both, place in zip(inner, self.places, strict=True):
            gate, up = both.chunk(2, dim=1)
            parts.append(self._gated(gate, up, logits, place))
        return F.linear(torch.cat(parts, dim=1), self.wide_out, self.bias_out)

    def _in_parts(self, hidden_states: Tensor, x_ND: Tensor) -> Tensor:
        """What every token needs, then each adapter for the tokens that it is wanted and open for.

        Each product by itself: the halves of a wide one lie strided in memory, and a CPU pays for
        that at every step.
        """
        width, end = self.width, self.num_shared
        gate, up, logits = (
            self._inner(x_ND, a, b) for a, b in ((0, width), (width, 2 * width), (2 * width, end))
        )
        out_ND = F.linear(self.activation(gate) * up, self.wide_out[:, :width], self.bias_out)
        for place in self.places:
            tokens_N = self._tokens(hidden_states, logits, place)
            if tokens_N is None:
                out_ND = out_ND + self._delta(x_ND, logits, place)
            elif len(tokens_N):
                out_ND = out_ND.index_add(
                    0, tokens_N, self._delta(x_ND[tokens_N], logits[tokens_N], place)
                )
        return out_ND

    def _inner(self, x_ND: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the first product; only those that every token needs have a
        bias."""
        bias = (
            None if self.bias_in is None or start >= self.num_shared else self.bias_in[start:stop]
        )
        return F.linear(x_ND, self.wide_in[start:stop], bias)

    def _delta(self, x_ND: Tensor, logits: Tensor, place: _Place) -> Tensor:
        start, stop = place.rows.start, place.rows.stop
        middle = (start + stop) // 2
        gate, up = self._inner(x_ND, start, middle), self._inner(x_ND, middle, stop)
        return F.linear(self._gated(gate, up, logits, place), self.wide_out[:, place.columns])

    def _gated(self, gate: Tensor, up: Tensor, logits: Tensor, place: _Place) -> Tensor:
        """g * b: (N, R)."""
        hidden: Tensor = place.activation(gate) * up
        if place.gate is None:
            return hidden
        return hidden * block_gate(logits[:, place.gate : place.gate + 1], place.kind)

    def _tokens(self, hidden_states: Tensor, logits: Tensor, place: _Place) -> Tensor | None:
        """Positions of the tokens to compute; None means all."""
        tokens_N = None
        if self.requests is not None:
            tokens_N = self.requests.tokens(place.name, hidden_states)
        if not can_skip(place.kind, logits):
            return tokens_N
        assert place.gate is not None
        gate_logits = logits[:, place.gate]
        return open_tokens(gate_logits if tokens_N is None else gate_logits[tokens_N], tokens_N)

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse_to_save()


def _places(adapters: Sequence[Adapter], *, width: int, num_shared: int) -> list[_Place]:
    places: list[_Place] = []
    row, column, gate = num_shared, width, 0
    for adapter in adapters:
        inner = adapter.w_g.out_features
        places.append(
            _Place(
                adapter.name,
                adapter.kind,
                adapter.activation,
                gate=None if adapter.w is None else gate,
                rows=slice(row, row + 2 * inner),
                columns=slice(column, column + inner),
            )
        )
        row, column, gate = row + 2 * inner, column + inner, gate + (adapter.w is not None)
    return places


def _stacked(linears: Sequence[nn.Linear], like: Tensor, *, dim: int) -> Tensor:
    return torch.cat(
        [linear.weight.detach().to(like.device, like.dtype) for linear in linears], dim=dim
    )


def _biases(linears: Sequence[nn.Linear], like: Tensor) -> Tensor | None:
    if all(linear.bias is None for linear in linears):
        return None
    zeros = [like.new_zeros(linear.out_features) for linear in linears]
    given = [
        z if m.bias is None else m.bias.detach().to(z) for z, m in zip(zeros, linears, strict=True)
    ]
    return torch.cat(given)


@torch.no_grad()
def fuse(model: nn.Module) -> nn.Module:
    """Fold the active residues into wider feed-forward blocks, in place, and return the model
    without PEFT's wrapper.

    Residues beside other blocks (sparse, not gated, quantised) stay as they are.

    Raises:
        UserError: if there is nothing to fold: no enabled residues, or no block that is a plain
            gated unit.
    """
    names = [name for name, layer in residue_layers(model).items() if layer.wanted()]
    if not names:
        raise UserError(
            "the model has no enabled neutral residues to fuse",
            do="load an extension, and enable it",
        )
    if sum(_fold(model, name) for name in names) == 0:
        block = type(model.get_submodule(names[0]).base_layer).__name__
        raise UserError(
            "no feed-forward block of this backbone can be fused",
            got=block,
            allowed=(
                "down(act(gate(x)) * up(x)), as in Llama, Mistral, Qwen or Gemma, not quantised"
            ),
            do="run it unfused",
        )
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    inner.save_pretrained = _refuse_to_save  # before it writes the first of its files
    return inner.eval()


def _fold(model: nn.Module, name: str) -> bool:
    """Replace that block by its fused form, if it has one; nobody else holds on to the old one."""
    layer = model.get_submodule(name)
    assert isinstance(layer, NeutralResiduesLayer)
    glu = plain_glu(layer.base_layer)
    if glu is None:
        return False
    parent, _, child = name.rpartition(".")
    setattr(
        model.get_submodule(parent),
        child,
        FusedBlock(glu, [layer.adapter(n) for n in layer.wanted()]),
    )
    return True


def _refuse_to_save(*args: Any, **kwargs: Any) -> NoReturn:
    raise UserError(
        "a fused model cannot be saved", do="save the extension itself, or use neutral export"
    )
