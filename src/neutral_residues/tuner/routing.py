"""An adapter for each row of a batch (PEFT's `adapter_names`), in every layer of a model.

Promise: each row gets the residue of its own adapter only, and a row without an adapter gets the
backbone's output, whichever adapters are active.

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
"""PEFT's name in `adapter_names` for a row without adapter."""


class AdapterRouting:
    """The adapter of each row of a batch; all layers share one object. Arguments as in
    `per_request`."""

    def __init__(self, names: Sequence[str], rows_per_name: int | None = 1) -> None:
        self.names = tuple(names)
        self.adapters = tuple(name for name in dict.fromkeys(names) if name != BACKBONE)
        self.rows_per_name = rows_per_name
        self._tokens_N: dict[tuple[str, int, torch.device], Tensor] = {}

    def tokens(self, name: str, hidden_states: Tensor) -> Tensor:
        """Positions (N,) of the tokens of `hidden_states` (..., D) that use adapter `name`, also if
        the backbone has flattened rows and tokens into one dimension."""
        num_tokens = hidden_states.shape[:-1].numel()
        key = (name, num_tokens, hidden_states.device)
        if key not in self._tokens_N:
            self._check(hidden_states)
            chosen = torch.tensor([n == name for n in self.names], device=hidden_states.device)
            tokens_per_name = num_tokens // len(self.names)
            self._tokens_N[key] = chosen.repeat_interleave(tokens_per_name).nonzero().squeeze(1)
        return self._tokens_N[key]

    def _check(self, hidden_states: Tensor) -> None:
        num_rows, expected = len(hidden_states), len(self.names) * (self.rows_per_name or 1)
        exact = self.rows_per_name is not None and hidden_states.ndim == 3
        if num_rows != expected if exact else num_rows % expected:
            raise _wrong_length(len(self.names), num_rows)


class RoutableModule(ABC):
    """A module that can compute another adapter for each row."""

    routing: AdapterRouting | None = None

    @abstractmethod
    def known_adapters(self) -> list[str]:
        """Names of the adapters that a row can use."""


@contextmanager
def per_request(
    model: nn.Module, names: Sequence[str], *, rows_per_name: int | None = 1
) -> Iterator[None]:
    """Inside this context, each row of a batch uses the adapter named for it, whichever adapters
    are active:

        with per_request(model, ["french", "__base__", "german"]):
            model.generate(**three_prompts)

    A `PeftModel` takes the same list as its argument `adapter_names`.

    Args:
        model: a PEFT model, or a model with Transformers' own adapter methods, in eval mode.
        names: for each row the name of its adapter, or "__base__" for none.
        rows_per_name: number of neighbouring rows that share a name, such as beams or returned
            sequences; None allows any number.

    Raises:
        UserError: for a name that is not loaded, or a model in training mode; in the forward pass,
            for a wrong number of names.
    """
    modules = [module for module in model.modules() if isinstance(module, RoutableModule)]
    _check_names(names, {name for module in modules for name in module.known_adapters()})
    if model.training:
        what = "adapter_names is for inference, and the model is in training mode"
        raise UserError(what, do="call model.eval()")
    with temporarily(modules, "routing", AdapterRouting(names, rows_per_name)):
        yield


@contextmanager
def temporarily(modules: Sequence[object], attribute: str, value: object) -> Iterator[None]:
    """Inside this context `attribute` of all `modules` is `value`; afterwards it is as before."""
    before = [getattr(module, attribute) for module in modules]
    for module in modules:
        setattr(module, attribute, value)
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            setattr(module, attribute, own)


def check_length(names: Any, *, num_rows: int) -> None:
    """Raise a UserError unless `names` is a list with one name for each row of the batch."""
    if isinstance(names, str) or len(names) != num_rows:
        raise _wrong_length(names if isinstance(names, str) else len(names), num_rows)


def _wrong_length(got: int | str, num_rows: int) -> UserError:
    names = repr(got) if isinstance(got, str) else f"{got} names for {num_rows} rows"
    allowed = "a list with one name for each row of the batch"
    return UserError("adapter_names", got=names, allowed=allowed)


def _check_names(names: Sequence[str], known: set[str]) -> None:
    for name in names:
        if name != BACKBONE and name not in known:
            what = "adapter_names: this adapter is not loaded"
            allowed = f"{', '.join(sorted(known)) or 'none is'}, or {BACKBONE} for none"
            raise UserError(what, got=name, allowed=allowed, do=nearest(name, known))
