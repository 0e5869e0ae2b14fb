"""One gate for a whole extension, ours and not the paper's: it reads the last tokens of the text.

    e_t = W_2 silu(W_1 r_t)                       r_t: embedding of token t, divided by its RMS
    s_t = v . silu(c + sum_j C_j e_{t-j}) + b     j = 0 ... 15, e is 0 before the text's first token
    g_t = relu(s_t)                               the gate of every layer and of the head at token t

A gate that reads its layer's input knows what the backbone knows of the language there, in the
first layers little, and each layer decides for itself. This one decides once for each token, from
the text alone: what it says does not depend on the adapters, on the layer, or on text more than 16
tokens back (LAB.md, "what a gate could know, and gates that read the text").

    symbol   shape       name in checkpoints             meaning
    W_1      32 x D      neutral_residues.rows           two layers that see one token
    W_2      8 x 32      neutral_residues.code
    C_j, c   32 x 8, 32  neutral_residues.window         the last 16 tokens, the oldest first
    v, b     1 x 32, 1   neutral_residues.block_gate     v = 0 and b = 1 at the start: open

Where text is generated token by token, the codes e of earlier tokens are kept as one more layer of
the key-value cache, so whatever reorders, cuts or repeats a cache does it to them too.

Suffixes: B rows, T tokens of this pass, W of a window, C 8 numbers of a code.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import Cache, DynamicLayer

from neutral_residues.config.choices import BlockGate
from neutral_residues.errors import UserError
from neutral_residues.tuner.beside import ModuleBeside
from neutral_residues.tuner.neutral import Gate

WINDOW, HIDDEN, CODE = 16, 32, 8


class TokenReader(nn.Module):
    """The gate's logit from embeddings; see the head of this file. `width_in` is D."""

    def __init__(self, width_in: int, kind: BlockGate = "relu") -> None:
        super().__init__()
        self.kind = kind
        self.rows = nn.Linear(width_in, HIDDEN)
        self.code = nn.Linear(HIDDEN, CODE)
        self.window = nn.Linear(CODE * WINDOW, HIDDEN)
        self.block_gate = nn.Linear(HIDDEN, 1)

    @torch.no_grad()
    def reset_parameters(self, **_: Any) -> None:
        """Open on every token: v = 0, b = 1; W_1 and W_2 as fresh linear layers, C_j with the usual
        variance 2/(8 x 16)."""
        self.rows.reset_parameters()
        self.code.reset_parameters()
        nn.init.normal_(self.window.weight, std=math.sqrt(2 / self.window.in_features))
        nn.init.zeros_(self.window.bias)
        nn.init.zeros_(self.block_gate.weight)
        nn.init.ones_(self.block_gate.bias)

    def codes(self, embeddings_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, C), each token by itself."""
        if not torch.is_autocast_enabled(embeddings_BTD.device.type):
            embeddings_BTD = embeddings_BTD.to(self.rows.weight.dtype)
        rows_BTD = F.rms_norm(embeddings_BTD, embeddings_BTD.shape[-1:], eps=1e-12)
        codes: Tensor = self.code(F.silu(self.rows(rows_BTD)))
        return codes

    def gates(
        self, codes_BTC: Tensor, before_BWC: Tensor | None, positions_BT: Tensor | None
    ) -> Gate:
        """The gates at T tokens, from their codes and those of the tokens before them, in the same
        text where positions within texts are known."""
        if before_BWC is not None:
            codes_BTC = torch.cat([before_BWC.to(codes_BTC.dtype), codes_BTC], dim=1)
        num_before = 0 if before_BWC is None else before_BWC.shape[1]
        padded = F.pad(codes_BTC, (0, 0, WINDOW - 1 - num_before, 0))
        windows_BTCW = padded.unfold(1, WINDOW, 1)
        if positions_BT is not None:
            distances_W = torch.arange(WINDOW - 1, -1, -1, device=positions_BT.device)
            same_text_BTW = positions_BT[..., None] >= distances_W
            windows_BTCW = windows_BTCW * same_text_BTW[:, :, None].to(codes_BTC.device)
        hidden_BTH = F.silu(self.window(windows_BTCW.transpose(-1, -2).flatten(-2)))
        return Gate.of(self.kind, self.block_gate(hidden_BTH))


def num_reader_weights(width_in: int) -> int:
    """Of one `TokenReader`."""
    per_token = (width_in + 1) * HIDDEN + (HIDDEN + 1) * CODE
    return per_token + (CODE * WINDOW + 1) * HIDDEN + HIDDEN + 1


class CodesLayer(DynamicLayer):
    """The codes of one extension, as a layer of a key-value cache."""

    is_compileable = True  # so that what the other layers are decides

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def append(self, codes_BTC: Tensor) -> None:
        """Keep the codes of further tokens."""
        codes_B1TC = codes_BTC.detach()[:, None]
        self.update(codes_B1TC, codes_B1TC[..., :0])

    def last(self) -> Tensor:
        """(B, W, C) of the last 15 tokens, or as many as there are."""
        codes: Tensor = self.keys[:, 0, 1 - WINDOW :]
        return codes


class ReaderLayer(ModuleBeside):
    """The backbone's embeddings, unchanged, and the readers of all extensions beside them; the
    gates of a pass are ready before its first layer runs."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.gates: dict[str, Gate] = {}
        self._learning_gates: dict[str, Gate] = {}  # of the last pass with gradients
        self.logits_to_keep: Any = 0
        self._codes: dict[str, Tensor] = {}
        self._cache: Cache | None = None
        self._mask: Any = None
        self._positions: Any = None
        self._hooks: list[Any] = []
        self._argument_names: tuple[str, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """A copy has read nothing yet: what a pass leaves cannot be copied while it trains."""
        left: dict[str, Any] = {
            "gates": {},
            "_learning_gates": {},
            "_codes": {},
            "_cache": None,
            "_mask": None,
            "_positions": None,
        }
        return self.__dict__ | left

    def reader(self, name: str) -> TokenReader:
        """The reader of that extension."""
        module = self.neutral_residues[name]
        assert isinstance(module, TokenReader)
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        embeddings_BTD: Tensor = self.base_layer(*args, **kwargs)
        self._read(embeddings_BTD)
        return embeddings_BTD

    def _read(self, embeddings_BTD: Tensor) -> None:
        gates, self._codes = {}, {}
        for name in self.active_names():
            self.check_loaded(name)
            reader = self.reader(name)
            codes_BTC = reader.codes(embeddings_BTD)
            before_BWC, first = self._before(name)
            real_BT = _real_tokens(self._mask, first, codes_BTC.shape[1])
            if real_BT is not None:
                codes_BTC = codes_BTC * real_BT[..., None].to(codes_BTC.dtype)
            positions_BT = _positions(self._positions, codes_BTC.shape[1])
            gates[name] = reader.gates(codes_BTC, before_BWC, positions_BT)
            self._codes[name] = codes_BTC
        self.gates = gates
        if torch.is_grad_enabled():
            self._learning_gates = gates

    def _before(self, name: str) -> tuple[Tensor | None, int]:
        """The codes of the last tokens before this pass, from its cache, and how many there are in
        all."""
        if self._cache is None:
            return None, 0
        stored = _stored(self._cache, name)
        if stored is not None and (length := stored.get_seq_length()):
            return stored.last(), length
        if stored is None and self._cache.get_seq_length():
            what = f"past_key_values were computed without {name!r}, whose gate reads the text"
            raise UserError(what, do="compute them with the extension active")
        return None, 0

    def before_pass(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A forward pre-hook of the decoder: what the gates depend on besides embeddings."""
        given = dict(zip(self._argument_names, args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        self._cache = cache if isinstance(cache, Cache) else None
        self._mask, self._positions = given.get("attention_mask"), given.get("position_ids")
        if given.get("inputs_embeds") is not None:
            self._read(given["inputs_embeds"])

    def after_pass(self, decoder: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """A forward hook of the decoder: keeps the codes where the pass kept keys and values."""
        cache = getattr(outputs, "past_key_values", None) or self._cache
        if isinstance(cache, Cache):
            for name, codes_BTC in self._codes.items():
                stored = _stored(cache, name)
                if stored is None:
                    stored = CodesLayer(name)
                    cache.layers.append(stored)
                stored.append(codes_BTC)
        self._codes, self._cache, self._mask, self._positions = {}, None, None, None

    def before_head(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the whole model: which positions get logits."""
        self.logits_to_keep = kwargs.get("logits_to_keep", 0)

    def watch(self, model: nn.Module, decoder: nn.Module) -> None:
        """Put the hooks in place, once."""
        if self._hooks:
            return
        self._argument_names = tuple(inspect.signature(decoder.forward).parameters)
        self._hooks = [
            decoder.register_forward_pre_hook(self.before_pass, with_kwargs=True),
            decoder.register_forward_hook(self.after_pass),
            model.register_forward_pre_hook(self.before_head, with_kwargs=True),
        ]

    def unwatch(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def gate_at(self, name: str, hidden_states: Tensor) -> Gate:
        """The gate of the current pass at the tokens of `hidden_states` (..., D): all of the pass,
        also where a backbone folds rows and tokens into one, or those that get logits."""
        # Gradient checkpointing computes layers again in the backward pass, before which another
        # model's outputs may have been asked for, of the backbone for example.
        is_backward = torch._C._current_graph_task_id() != -1
        gates = self._learning_gates if is_backward else self.gates
        if name not in gates:
            what = f"the gate of extension {name!r} reads the text, and this pass had none"
            raise UserError(what, do="run the whole model, with input_ids or inputs_embeds")
        gate, shape = gates[name], hidden_states.shape[:-1]
        if gate.logits.numel() != shape.numel():
            keep = self.logits_to_keep
            kept = slice(-keep, None) if isinstance(keep, int) else keep
            gate = Gate(gate.gate[:, kept], gate.logits[:, kept])
        return Gate(*(it.to(hidden_states.device).reshape(*shape, 1) for it in gate))


def _stored(cache: Cache, name: str) -> CodesLayer | None:
    layers = (layer for layer in cache.layers if isinstance(layer, CodesLayer))
    return next((layer for layer in layers if layer.name == name), None)


def _positions(position_ids: Any, num_tokens: int) -> Tensor | None:
    """(B, T) or (1, T) each token's place in its text, which starts again at 0 where a row packs
    several; None where they are not given in that form."""
    is_plain = isinstance(position_ids, Tensor) and position_ids.ndim == 2
    return position_ids if is_plain and position_ids.shape[1] == num_tokens else None


def _real_tokens(mask: Any, first: int, num_tokens: int) -> Tensor | None:
    """(B, T) which tokens of a pass are not padding, from its attention mask: (B, tokens so far),
    or, as generation with a static cache makes it, (B, 1, T, places) or several of these by kind;
    None where nothing says so."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    if mask.ndim == 4:  # what the last token may attend to
        mask = mask[:, 0, -1]
        mask = mask if mask.dtype == torch.bool else mask >= 0
    return mask[:, first : first + num_tokens]
