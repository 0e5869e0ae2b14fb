"""Wraps the backbone's embeddings; holds what extensions add there: gates that read tokens
(`reader.py`) and new tokens (`new_tokens.py`).

The embeddings of the backbone's own tokens are unchanged. The gates of a forward pass are computed
before its first layer runs. New tokens also need logits: forward hooks append them to those of the
output head.

Suffixes: B rows, T tokens of this forward pass, W earlier tokens that a gate reads, C = 8 numbers
of a token's code, N new tokens, V size of the backbone's vocabulary.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from neutral_residues.errors import UserError
from neutral_residues.tuner.beside import ModuleBeside
from neutral_residues.tuner.blocks import text_config
from neutral_residues.tuner.kept_codes import StateWithCodes, cache_in, codes_before, keep_codes
from neutral_residues.tuner.neutral import Gate
from neutral_residues.tuner.new_tokens import NewTokens
from neutral_residues.tuner.reader import TokenReader
from neutral_residues.tuner.strongest import strongest


class BesideEmbeddings(nn.Module):
    """What one extension adds at the embeddings: a reader, new tokens, or both."""

    def __init__(self, reader: TokenReader | None, tokens: NewTokens | None) -> None:
        super().__init__()
        self.reader, self.tokens = reader, tokens

    def reset_parameters(self, **settings: Any) -> None:
        """Initialise the weights for training."""
        for part in (self.reader, self.tokens):
            if part is not None:
                part.reset_parameters(**settings)


class EmbeddingsLayer(ModuleBeside):
    """The backbone's embeddings with the readers and new tokens of all extensions; see the module
    docstring."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.strongest_over: int | None = None  # see `strongest.py`; None: gates do not compete
        self.gates: dict[str, Gate] = {}
        self._learning_gates: dict[str, Gate] = {}  # of the last pass with gradients
        self.logits_to_keep: Any = 0
        self._codes: dict[str, Tensor] = {}
        self._cache: Any = None
        self._mask: Any = None
        self._positions: Any = None
        self._hooks: list[Any] = []
        self._argument_names: tuple[str, ...] = ()
        self._impossible: Tensor | None = None  # where a capped head's new tokens have -inf

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without the state of a forward pass: tensors with gradients cannot be
        copied."""
        left: dict[str, Any] = {
            "gates": {},
            "_learning_gates": {},
            "_codes": {},
            "_cache": None,
            "_mask": None,
            "_positions": None,
            "_impossible": None,
        }
        return self.__dict__ | left

    def beside(self, name: str) -> BesideEmbeddings:
        """What extension `name` adds at the embeddings."""
        module = self.neutral_residues[name]
        assert isinstance(module, BesideEmbeddings)
        return module

    def reader(self, name: str) -> TokenReader | None:
        """The reader of extension `name`; None if its gate does not read tokens."""
        return self.beside(name).reader

    def tokens(self, name: str) -> NewTokens | None:
        """The new tokens of extension `name`; None if it has none."""
        return self.beside(name).tokens

    def readers(self) -> dict[str, TokenReader]:
        """Name -> reader, of all extensions whose gate reads tokens."""
        found = {name: self.reader(name) for name in self.known_adapters()}
        return {name: reader for name, reader in found.items() if reader is not None}

    @property
    def has_tokens(self) -> bool:
        """Whether any extension has new tokens, active or not."""
        return any(self.tokens(name) for name in self.known_adapters())

    @property
    def first_new_id(self) -> int:
        """V, the id of every extension's first new token."""
        weight = self.base_layer.weight
        assert isinstance(weight, Tensor)
        return len(weight)

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        embeddings_BTD = self.embed(input_ids, *args, **kwargs)
        self._read(embeddings_BTD)
        return embeddings_BTD

    def active_tokens(self) -> dict[str, NewTokens]:
        """Name -> new tokens, of the active extensions that have any."""
        found = {name: self.tokens(name) for name in self.active_names()}
        return {name: tokens for name, tokens in found.items() if tokens is not None}

    def embed(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, T) ids -> (B, T, D): the backbone's embeddings, and those of active extensions for
        new tokens; runs no reader."""
        active, first = self.active_tokens(), self.first_new_id
        self._check_ids(input_ids, active)
        if not active:
            return self.base_layer(input_ids, *args, **kwargs)
        numbers = input_ids - first
        embeddings = self.base_layer(input_ids.masked_fill(numbers >= 0, 0), *args, **kwargs)
        for name, tokens in active.items():
            rows = tokens.embed(numbers.clamp(0, tokens.num_tokens - 1)).to(embeddings.dtype)
            here = ((numbers >= 0) & self._rows_of(name, input_ids[..., None]))[..., None]
            embeddings = torch.where(here, rows, embeddings)
        return embeddings

    def _check_ids(self, input_ids: Tensor, active: dict[str, NewTokens]) -> None:
        """A UserError for an id that no active extension has (checked on the CPU only, as a GPU
        would have to wait), and for two active extensions with the same ids."""
        if len(active) > 1 and self.routing is None:
            what = f"{' and '.join(active)} both have new tokens, with the same ids"
            raise UserError(what, do="activate one, or name each row's with adapter_names")
        if torch.compiler.is_compiling() or input_ids.device.type != "cpu" or not len(input_ids):
            return
        end = self.vocabulary_size
        if input_ids.numel() and (largest := int(input_ids.max())) >= end:
            what = "input_ids: no active extension has this token"
            do = "activate the extension that its tokenizer belongs to"
            raise UserError(what, got=largest, allowed=f"0 to {end - 1}", do=do)

    def _rows_of(self, name: str, hidden_states: Tensor) -> Tensor:
        """(...) whether each token of `hidden_states` (..., D) is in a row for which extension
        `name` is active."""
        shape = hidden_states.shape[:-1]
        if self.routing is None:
            return hidden_states.new_ones(shape, dtype=torch.bool)
        chosen = hidden_states.new_zeros(shape.numel(), dtype=torch.bool)
        chosen[self.routing.tokens(name, hidden_states)] = True
        return chosen.view(shape)

    @property
    def vocabulary_size(self) -> int:
        """V plus the new tokens of the active extensions."""
        numbers = [tokens.num_tokens for tokens in self.active_tokens().values()]
        return self.first_new_id + max(numbers, default=0)

    @property
    def can_forbid_tokens(self) -> bool:
        """Whether an active extension has new tokens under a gate that can be exactly 0."""
        gates = [self.reader(name) for name in self.active_tokens()]
        return any(reader is not None and reader.kind == "relu" for reader in gates)

    def forbids_new_tokens(self, input_ids: Tensor) -> Tensor:
        """(B, T), on the CPU: whether new tokens have probability exactly 0 after each of these
        tokens. Runs only the readers; ids must not be padded."""
        (name,) = self.active_tokens()
        return self._gates_alone(input_ids)[name].gate[..., 0].cpu() == 0

    def shut_rows(self, input_ids: Tensor) -> Tensor:
        """(B,), on the CPU: whether every gate that reads tokens is exactly 0 on a whole row of
        (B, T) tokens. Runs only the readers; ids must not be padded."""
        shut_B = torch.ones(len(input_ids), dtype=torch.bool)
        for gate in self._gates_alone(input_ids).values():
            shut_B &= ~gate.gate.flatten(1).any(1).cpu()
        return shut_B

    def _gates_alone(self, input_ids: Tensor) -> dict[str, Gate]:
        with torch.inference_mode():
            self(input_ids.to(next(self.parameters()).device))
        return self.gates

    def after_head(self, head: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        """Forward hook of the output head: appends the logits of new tokens, (..., V) to
        (..., V + N)."""
        active, h = self.active_tokens(), args[0]
        if not active:
            return None
        width = max(tokens.num_tokens for tokens in active.values())
        behind = logits.new_full((*logits.shape[:-1], width), -torch.inf)
        for name, tokens in active.items():
            gate = self.gate_at(name, h) if self.reader(name) is not None else None
            own = tokens.logits(h, gate).to(logits.dtype)
            own = F.pad(own, (0, width - tokens.num_tokens), value=-torch.inf)
            behind = torch.where(self._rows_of(name, h)[..., None], own, behind)
        self._impossible = behind.isinf()
        return torch.cat([logits, behind], dim=-1)

    def after_model(self, model: nn.Module, args: tuple[Any, ...], outputs: Any) -> Any:
        """Forward hook of a model that caps its logits: restores the -inf of new tokens that closed
        gates exclude."""
        if self._impossible is None:
            return None
        impossible, self._impossible = F.pad(self._impossible, (self.first_new_id, 0)), None
        if not isinstance(outputs, tuple):
            outputs.logits = outputs.logits.masked_fill(impossible, -torch.inf)
            return None
        # With return_dict=False the loss, a scalar, comes before the logits if there is one.
        place = 0 if outputs[0].ndim else 1
        capped = outputs[place].masked_fill(impossible, -torch.inf)
        return (*outputs[:place], capped, *outputs[place + 1 :])

    @property
    def num_more(self) -> int:
        """How many tokens before this forward pass it needs the gates of, to find the extension
        with the strongest gate."""
        return (self._over or 1) - 1

    @property
    def _over(self) -> int | None:
        """Number of tokens over which the strongest gate is found; None if gates do not compete."""
        readers = [name for name in self.active_names() if self.reader(name) is not None]
        return self.strongest_over if len(readers) > 1 and self.routing is None else None

    def _read(self, embeddings_BTD: Tensor) -> None:
        gates, self._codes = {}, {}
        positions_BT = _positions(self._positions, embeddings_BTD.shape[1])
        for name in self.active_names():
            self.check_loaded(name)
            reader = self.reader(name)
            if reader is None:
                continue
            codes_BTC = reader.codes(embeddings_BTD)
            number = reader.num_before + self.num_more
            before_BWC, first = codes_before(self._cache, name, number)
            real_BT = _real_tokens(self._mask, first, codes_BTC.shape[1])
            if real_BT is not None:
                codes_BTC = codes_BTC * real_BT[..., None].to(codes_BTC.dtype)
            gates[name] = reader.gates(codes_BTC, before_BWC, positions_BT, self.num_more)
            self._codes[name] = codes_BTC
        if self._over is not None:
            gates = strongest(gates, positions_BT, self._over)
        self.gates = gates
        if torch.is_grad_enabled():
            self._learning_gates = gates

    def before_pass(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Forward pre-hook of the decoder: takes cache, mask and positions from its arguments,
        which the gates depend on besides the embeddings."""
        given = dict(zip(self._argument_names, args, strict=False)) | kwargs
        self._cache = cache_in(given)
        self._mask, self._positions = given.get("attention_mask"), given.get("position_ids")
        if given.get("inputs_embeds") is not None:
            self._read(given["inputs_embeds"])

    def after_pass(self, decoder: nn.Module, args: tuple[Any, ...], outputs: Any) -> None:
        """Forward hook of the decoder: stores the tokens' codes with its cache, for the next
        pass."""
        left = cache_in(outputs) if isinstance(outputs, Mapping) else None
        kept = keep_codes(self._cache if left is None else left, self._codes)
        if isinstance(kept, StateWithCodes) and left is not None:
            outputs.state = kept
        self._codes, self._cache, self._mask, self._positions = {}, None, None, None

    def before_head(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook of the whole model: remembers which positions get logits."""
        self.logits_to_keep = kwargs.get("logits_to_keep", 0)

    def watch(self, model: Any, decoder: nn.Module, head: nn.Module | None) -> None:
        """Register the hooks, those for new tokens only if there are any. Call it again after
        `head` was wrapped."""
        self.unwatch()
        self._argument_names = tuple(inspect.signature(decoder.forward).parameters)
        self._hooks = [
            decoder.register_forward_pre_hook(self.before_pass, with_kwargs=True),
            decoder.register_forward_hook(self.after_pass),
            model.register_forward_pre_hook(self.before_head, with_kwargs=True),
        ]
        if head is None or not self.has_tokens:
            return
        self._hooks.append(head.register_forward_hook(self.after_head))
        if getattr(text_config(model), "final_logit_softcapping", None):
            self._hooks.append(model.register_forward_hook(self.after_model))

    def unwatch(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def gate_at(self, name: str, hidden_states: Tensor) -> Gate:
        """The gate (..., 1) of the current forward pass for the tokens of `hidden_states` (..., D):
        all of its tokens, also where a backbone flattens (B, T), or only those that get logits."""
        # Gradient checkpointing computes layers again in the backward pass; another forward pass
        # (of the backbone, for example) may have run since.
        is_backward = torch._C._current_graph_task_id() != -1
        gates = self._learning_gates if is_backward else self.gates
        if name not in gates:
            what = f"the gate of extension {name!r} reads the text, and this pass had none"
            raise UserError(what, do="run the whole model, with input_ids or inputs_embeds")
        gate, shape = gates[name], hidden_states.shape[:-1]
        if gate.logits.numel() != shape.numel():
            keep = self.logits_to_keep
            kept = slice(-keep, None) if isinstance(keep, int) else keep
            gate = gate.map(lambda values: values[:, kept])
        if gate.logits.numel() != shape.numel():  # Transformers' RWKV mixes up rows
            what, allowed = "tokens in a block of the backbone", f"the {gate.logits.numel()} read"
            raise UserError(what, got=shape.numel(), allowed=allowed, do="give one row at a time")
        return gate.map(lambda values: values.to(hidden_states.device).reshape(*shape, 1))


def embeddings_layer(model: nn.Module) -> EmbeddingsLayer | None:
    """The wrapped embeddings of a model; None if no extension adds anything there."""
    return next((it for it in model.modules() if isinstance(it, EmbeddingsLayer)), None)


def piece_means(pieces: Sequence[Sequence[int]], rows_of: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, D) for each new token the mean of the rows of its pieces; `rows_of` maps (n,) ids to (n,
    D) rows."""
    lengths = torch.tensor([len(ids) for ids in pieces])
    rows = rows_of(torch.tensor([i for ids in pieces for i in ids])).float().cpu()
    sums = rows.new_zeros(len(pieces), rows.shape[1])
    sums.index_add_(0, torch.arange(len(pieces)).repeat_interleave(lengths), rows)
    return sums / lengths[:, None]


def _positions(position_ids: Any, num_tokens: int) -> Tensor | None:
    """(B, T) or (1, T) position of each token in its text, starting again at 0 where a row packs
    several texts; None if they are not given in that form."""
    is_plain = isinstance(position_ids, Tensor) and position_ids.ndim == 2
    return position_ids if is_plain and position_ids.shape[1] == num_tokens else None


def _real_tokens(mask: Any, first: int, num_tokens: int) -> Tensor | None:
    """(B, T) which tokens are not padding, from the attention mask: (B, tokens so far), (B, T), or,
    in generation with a static cache, (B, 1, T, cache size) or a dictionary of these by kind of
    attention. None without a mask."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        return None
    if mask.ndim == 2:
        return mask[:, -num_tokens:]
    mask = mask[:, 0, -1]  # what the last token may attend to
    mask = mask if mask.dtype == torch.bool else mask >= 0
    return mask[:, first : first + num_tokens]
