"""Which tokens of a batch an adapter is computed for: those of its own requests, and of these those
with an open gate.

Promise: leaving a token out changes nothing, because what would be added to it is exactly 0 (a ReLU
gate), or is not wanted (a request for another adapter, or for none). Where all gates of a pass are
0, and in decoding one by one, the outputs are those of the plain path bit by bit; gathered tokens
go through the same formula in a matrix product with fewer rows, which may round the last bit
differently.

Suffixes: N chosen tokens, of all tokens of the batch in row-major order.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neutral_residues.errors import UserError, nearest

BACKBONE = "__base__"
"""PEFT's name, in `adapter_names`, for a request that wants no adapter."""

DENSE_SHARE = 0.85
"""With more than this share of gates open, computing every token costs less than gathering
(measured: LAB.md)."""

NO_TOKENS = torch.empty(0, dtype=torch.long)

GATHER_FROM = 64
"""A pass over fewer tokens is computed for all of them or, where every gate is 0, for none: too
small to gather."""


class Requests:
    """Which adapter each row of a batch wants; one object serves all layers of a forward pass.

    Args:
        names: for each row the name of an adapter, or `BACKBONE`.
        rows_per_name: how many rows of a batch share a name (beams, returned sequences); None takes
            any number.
    """

    def __init__(self, names: Sequence[str], rows_per_name: int | None = 1) -> None:
        self.names = tuple(names)
        self.adapters = tuple(name for name in dict.fromkeys(names) if name != BACKBONE)
        self.rows_per_name = rows_per_name
        self._tokens_N: dict[tuple[str, int, torch.device], Tensor] = {}

    def tokens(self, name: str, hidden_states: Tensor) -> Tensor:
        """(N,) positions of the tokens that want `name`, in row-major order.

        Rows that share a name stand side by side, also where a backbone folds rows and tokens into
        one dimension.
        """
        num_tokens = hidden_states.shape[:-1].numel()
        key = (name, num_tokens, hidden_states.device)
        if key not in self._tokens_N:
            self._check(hidden_states)
            wanted = torch.tensor([n == name for n in self.names], device=hidden_states.device)
            tokens_per_name = num_tokens // len(self.names)
            self._tokens_N[key] = wanted.repeat_interleave(tokens_per_name).nonzero().squeeze(1)
        return self._tokens_N[key]

    def _check(self, hidden_states: Tensor) -> None:
        num_rows, expected = len(hidden_states), len(self.names) * (self.rows_per_name or 1)
        exact = self.rows_per_name is not None and hidden_states.ndim == 3
        if num_rows != expected if exact else num_rows % expected:
            raise _wrong_length(len(self.names), num_rows)


class AnswersRequests(ABC):
    """A module that computes adapters by name."""

    requests: Requests | None = None

    @abstractmethod
    def known_adapters(self) -> list[str]:
        """The names that it can be asked for."""


@contextmanager
def per_request(
    model: nn.Module, names: Sequence[str], *, rows_per_name: int | None = 1
) -> Iterator[None]:
    """Within the block each row of a batch gets the adapter that `names` says for it, whatever is
    active.

        with per_request(model, ["french", "__base__", "german"]):
            model.generate(**three_prompts)

    A PeftModel takes the same list as its argument `adapter_names`; a fused model needs this block.

    Args:
        names: for each row the name of an adapter, or `BACKBONE` for none.
        rows_per_name: how many rows share a name: the number of beams, or of returned sequences;
            None takes any.

    Raises:
        UserError: for a name that is not loaded; in training mode; in the forward pass, for a wrong
            number of names.
    """
    modules = [module for module in model.modules() if isinstance(module, AnswersRequests)]
    _check_names(
        names,
        known=list(dict.fromkeys(name for module in modules for name in module.known_adapters())),
    )
    if model.training:
        raise UserError(
            "adapter_names is for inference, and the model is in training mode",
            do="call model.eval()",
        )
    requests = Requests(names, rows_per_name)
    for module in modules:
        module.requests = requests
    try:
        yield
    finally:
        for module in modules:
            module.requests = None


def check_length(names: Any, *, num_rows: int) -> None:
    """Raise a UserError unless `names` is a list with one name for each row of the batch."""
    if isinstance(names, str) or len(names) != num_rows:
        raise _wrong_length(names if isinstance(names, str) else len(names), num_rows)


def _wrong_length(got: int | str, num_rows: int) -> UserError:
    names = repr(got) if isinstance(got, str) else f"{got} names for {num_rows} rows"
    return UserError(
        "adapter_names", got=names, allowed="a list with one name for each row of the batch"
    )


def _check_names(names: Sequence[str], *, known: Sequence[str]) -> None:
    for name in names:
        if name != BACKBONE and name not in known:
            raise UserError(
                "adapter_names: this adapter is not loaded",
                got=name,
                allowed=f"{', '.join(known) or 'none is'}, or {BACKBONE} for none",
                do=nearest(name, known),
            )


def can_skip(kind: str, x: Tensor) -> bool:
    """Whether a token's gate can be exactly 0, and the host may look at it without making an
    accelerator wait."""
    return kind == "relu" and x.is_cpu and not torch.compiler.is_compiling()


def open_tokens(gate_logits: Tensor, tokens_N: Tensor | None) -> Tensor | None:
    """Of `tokens_N` (None: all), those whose ReLU gate is not 0; None where all are to be computed.

    Args:
        gate_logits: (N, 1), or any shape with as many numbers; NaN counts as open, so that it is
            seen.
    """
    num_tokens = gate_logits.numel()
    if num_tokens == 1:  # a decoding step, where every microsecond counts
        return NO_TOKENS if gate_logits.item() <= 0 else tokens_N
    is_shut_N = (gate_logits <= 0).flatten()
    if num_tokens < GATHER_FROM:
        return NO_TOKENS if bool(is_shut_N.all()) else tokens_N
    chosen = is_shut_N.logical_not().nonzero().squeeze(1)
    if len(chosen) > DENSE_SHARE * num_tokens:
        return tokens_N
    return chosen if tokens_N is None else tokens_N[chosen]
