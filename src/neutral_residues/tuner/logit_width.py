"""What Transformers takes from a model's configuration, told how many logits there are with new
tokens.

The configuration is the backbone's: it is saved as such, and an extension is checked against it. So
it says how many logits there are only while a method runs that asks it: `generate` (prompt lookup)
and `compute_transition_scores`. A loss takes the number from the logits. Refused are what could
only go wrong: another number of embeddings, which would move the ids of new tokens, and a watermark
whose detector is given the configuration.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import Tensor
from transformers import SynthIDTextWatermarkingConfig

from neutral_residues.errors import UserError
from neutral_residues.tuner.blocks import text_config
from neutral_residues.tuner.embeddings import embeddings_layer


def tell_width(model: Any) -> None:
    """Give `model`, in place, a loss and methods that know; nothing changes if it has them."""
    model.loss_function = _of_any_width(model.loss_function)
    for name, method in METHODS.items():
        if hasattr(type(model), name):
            # A bound method follows its model into a copy, which a closure would not.
            setattr(model, name, MethodType(method, model))


def forget_width(model: Any) -> None:
    """Give `model` its class's own methods back."""
    for name in METHODS:
        model.__dict__.pop(name, None)


def _of_any_width(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss function of Transformers, whose models tell it the number of logits from their
    configuration, and which believes them, told what there are."""
    if getattr(loss, "is_of_any_width", False):
        return loss

    @functools.wraps(loss)
    def told(logits: Tensor, labels: Tensor, vocab_size: int, *args: Any, **kwargs: Any) -> Tensor:
        return loss(logits, labels, logits.shape[-1], *args, **kwargs)

    told.is_of_any_width = True  # type: ignore[attr-defined]
    return told


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Transformers' own; a UserError for a watermark that new tokens would spoil."""
    with _told(model) as has_new_tokens:
        if has_new_tokens:
            _check_watermark(model, *args, **kwargs)
        return type(model).generate(model, *args, **kwargs)


def _compute_transition_scores(model: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Transformers' own."""
    with _told(model):
        scores: Tensor = type(model).compute_transition_scores(model, *args, **kwargs)
        return scores


def _resize_token_embeddings(
    model: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **_: Any
) -> Any:
    """The embeddings as they are; a UserError for another number of them."""
    layer = embeddings_layer(model)
    assert layer is not None
    if new_num_tokens not in (None, layer.first_new_id) or pad_to_multiple_of:
        what = "resize_token_embeddings would move the ids of an extension's new tokens"
        do = "resize before the extension is attached, or give it more new_tokens"
        allowed = f"{layer.first_new_id}, as they are"
        raise UserError(what, got=new_num_tokens, allowed=allowed, do=do)
    return model.get_input_embeddings()


@contextmanager
def _told(model: Any) -> Iterator[bool]:
    """Within the block the configuration says how many logits there are; whether these are more
    than the backbone's."""
    layer, config = embeddings_layer(model), text_config(model)
    assert layer is not None
    own, width = layer.first_new_id, layer.vocabulary_size
    if width == own:
        yield False
        return
    config.vocab_size = width
    try:
        yield True
    finally:
        config.vocab_size = own  # not what it was: another thread may be within, too


def _check_watermark(
    model: Any,
    inputs: Tensor | None = None,
    generation_config: Any = None,
    *_: Any,
    watermarking_config: Any = None,
    **__: Any,
) -> None:
    settings = generation_config or model.generation_config
    found = watermarking_config or settings.watermarking_config
    if found is not None and not isinstance(found, SynthIDTextWatermarkingConfig):
        what = "watermarking_config: its detector does not know of new tokens"
        do = "use SynthIDTextWatermarkingConfig, or the backbone's own tokens"
        raise UserError(what, got=type(found).__name__, do=do)


METHODS: dict[str, Callable[..., Any]] = {
    "generate": _generate,
    "compute_transition_scores": _compute_transition_scores,
    "resize_token_embeddings": _resize_token_embeddings,
}
"""What a model is given in place of its class's methods of these names."""
