"""Makes code of Transformers that reads `config.vocab_size` work with the logits of new tokens.

The configuration is that of the backbone: it is saved as such, and extensions are checked against
it. So `vocab_size` counts new tokens only while a method runs that uses it as the number of logits:
`generate` (prompt lookup) and `compute_transition_scores`. The loss takes the number from the
logits. What cannot work is refused: resizing the embeddings, which would move the ids of new
tokens, and watermarks whose detector is given the configuration.
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
    """Replace, in place, the loss function and the methods of `model` by versions that know the
    number of logits. Safe to call again."""
    model.loss_function = _of_any_width(model.loss_function)
    for name, method in METHODS.items():
        if hasattr(type(model), name):
            # A copy of the model gets a bound method of its own, unlike a closure.
            setattr(model, name, MethodType(method, model))


def forget_width(model: Any) -> None:
    """Restore the methods of the model's class."""
    for name in METHODS:
        model.__dict__.pop(name, None)


def _of_any_width(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`loss`, a loss function of Transformers, called with the real number of logits: models pass
    it the number in their configuration."""
    if getattr(loss, "is_of_any_width", False):
        return loss

    @functools.wraps(loss)
    def told(logits: Tensor, labels: Tensor, vocab_size: int, *args: Any, **kwargs: Any) -> Tensor:
        return loss(logits, labels, logits.shape[-1], *args, **kwargs)

    told.is_of_any_width = True  # type: ignore[attr-defined]
    return told


def _generate(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`generate` of the model's class; a UserError for watermarks that do not work with new
    tokens."""
    with _told(model) as has_new_tokens:
        if has_new_tokens:
            _check_watermark(model, *args, **kwargs)
        return type(model).generate(model, *args, **kwargs)


def _compute_transition_scores(model: Any, *args: Any, **kwargs: Any) -> Tensor:
    """`compute_transition_scores` of the model's class."""
    with _told(model):
        scores: Tensor = type(model).compute_transition_scores(model, *args, **kwargs)
        return scores


def _resize_token_embeddings(
    model: Any, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **_: Any
) -> Any:
    """Return the embeddings unchanged; a UserError for another number of them."""
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
    """Inside this context `config.vocab_size` counts new tokens too. Yields whether there are
    any."""
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
        config.vocab_size = own  # not the value before: another thread may be inside, too


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
"""Name -> function that replaces the method of this name."""
