"""Both sides of the trade-off, measured in one pass: what the extended model learnt and what it
forgot.

    scores = evaluate(model, streams, end_of_text=0, context_tokens=1024)
    metrics(scores), table(scores)                      both from `scores.py`

For each batch of windows the extended model runs, then the backbone: from the same weights, with
the extension switched off, or, for a fully fine-tuned model, from a separate `reference`. What
comes out are sums (`SetScore`): nats, bytes, tokens. `scores.py` divides them, once.

Promises: every token of a stream is scored exactly once, end-of-text tokens included; the first has
the end-of-text token before it. All windows of a stream are equally long, so nothing is padded.
Weights, training mode, what is trainable and which extension is active are left as they were.

Where we choose: windows of `context_tokens` inputs slide by `stride_tokens`. The first scores all
its targets, each later one its last `stride_tokens`, which no earlier one has scored; so those have
at least context - stride tokens before them. The last window is moved back to end with the stream.

Suffixes: B windows, T inputs of a window, K its last positions (all that is scored), V vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn

from neutral_residues.config.run import Role
from neutral_residues.errors import UserError
from neutral_residues.evaluation.metrics import SetScore, TokenSums
from neutral_residues.evaluation.sums import ResidueStats, Sums
from neutral_residues.tuner.layer import observe_residues, residue_layers

OnProgress = Callable[[str, int, int], None]
"""Called after each batch with the set's name, the tokens scored so far and the tokens in all."""


class ScorableText(Protocol):
    """An evaluation set as tokens."""

    @property
    def name(self) -> str:
        """How the set is called in every table."""

    @property
    def role(self) -> Role:
        """source or target."""

    @property
    def tokens(self) -> NDArray[Any]:
        """(num_tokens,) any integer type, may lie on disk; each document ends with the end-of-text
        token."""

    @property
    def document_ends(self) -> NDArray[np.int64]:
        """(num_documents,) where each document ends in `tokens`."""

    @property
    def document_bytes(self) -> NDArray[np.int64]:
        """(num_documents,) UTF-8 bytes of each document's text."""


@dataclass(frozen=True)
class Window:
    """Targets `start` to `end` (not included) of a stream, of which those from `scored_from` on are
    scored."""

    start: int
    end: int
    scored_from: int


def windows(num_tokens: int, *, context_tokens: int, stride_tokens: int) -> Iterator[Window]:
    """Windows that score each of `num_tokens` tokens once, in order; all are equally long."""
    end = min(context_tokens, num_tokens)
    yield Window(0, end, 0)
    while end < num_tokens:
        scored_from, end = end, min(end + stride_tokens, num_tokens)
        yield Window(end - context_tokens, end, scored_from)


def evaluate(
    model: nn.Module,
    streams: Sequence[ScorableText],
    *,
    end_of_text: int,
    context_tokens: int,
    stride_tokens: int | None = None,
    batch_rows: int = 8,
    reference: nn.Module | None = None,
    backbone: bool = True,
    max_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[SetScore]:
    """Score each stream with the extended model and its backbone. Nothing is run under autocast.

    Args:
        model: the extended model: PEFT's, or one that `reference` is given for.
        end_of_text: token that stands before the first one.
        context_tokens: inputs of a window.
        stride_tokens: new targets of each further window; None takes half of the context.
        batch_rows: windows at a time; changes results by float noise only.
        reference: the backbone, where switching the extension off does not give it (full
            fine-tuning).
        backbone: False measures the extended model only.
        max_tokens: measure only the first whole documents, as many as fit in so many tokens, but at
            least one.

    Raises:
        UserError: for a setting out of range, an empty or foreign stream, a model without backbone,
            or a loss that is not finite.
    """
    stride_tokens = max(1, context_tokens // 2) if stride_tokens is None else stride_tokens
    _check_settings(
        model, context_tokens=context_tokens, stride_tokens=stride_tokens, batch_rows=batch_rows
    )
    texts = [_Text.of(stream, end_of_text=end_of_text, max_tokens=max_tokens) for stream in streams]
    _check_texts(model, texts)
    scorer = _Scorer(model, reference, backbone)
    scores = []
    with inference(model, reference):
        for text in texts:
            plan = list(
                windows(
                    len(text.tokens), context_tokens=context_tokens, stride_tokens=stride_tokens
                )
            )
            scores.append(scorer.score(text, plan, batch_rows, on_progress))
    return scores


@contextmanager
def inference(*models: nn.Module | None) -> Iterator[None]:
    """Within the block the models are in eval mode, without gradients and without autocast; after
    it, as they were."""
    modules = [module for model in models if model is not None for module in model.modules()]
    training = [module for module in modules if module.training]
    device = next(
        parameter.device
        for model in models
        if model is not None
        for parameter in model.parameters()
    )
    for module in training:
        module.training = False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def as_backbone(model: nn.Module, reference: nn.Module | None = None) -> Iterator[nn.Module]:
    """Within the block, a model that is the backbone: `reference`, or `model` with its extension
    switched off.

    Raises:
        UserError: if there is neither.
    """
    if reference is not None:
        yield reference
        return
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    try:
        with _switched_off(model):
            yield model
    finally:
        # PEFT marks the active extension as trainable when it comes back, even in a model that was
        # loaded frozen.
        for parameter in model.parameters():
            if parameter.requires_grad != (id(parameter) in trainable):
                parameter.requires_grad_(id(parameter) in trainable)


@contextmanager
def _switched_off(model: Any) -> Iterator[None]:
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
    elif getattr(
        model, "_hf_peft_config_loaded", False
    ):  # attached by Transformers' own add_adapter
        model.disable_adapters()
        try:
            yield
        finally:
            model.enable_adapters()
    else:
        raise UserError(
            "no backbone to compare with: the model has no extension that could be switched off",
            got=type(model).__name__,
            allowed="a PEFT model, or any model together with reference=",
        )


@dataclass(frozen=True)
class _Text:
    """The whole documents of a stream that are measured."""

    name: str
    role: Role
    tokens: NDArray[Any]
    num_bytes: int
    document_ends: NDArray[np.int64]
    end_of_text: int

    @classmethod
    def of(cls, stream: ScorableText, *, end_of_text: int, max_tokens: int | None) -> "_Text":
        num_documents = len(stream.document_ends)
        if max_tokens is not None:
            if max_tokens < 1:
                raise UserError("max_tokens", got=max_tokens, allowed="1 or more")
            num_documents = min(
                num_documents, max(1, int((stream.document_ends <= max_tokens).sum()))
            )
        num_tokens = int(stream.document_ends[num_documents - 1]) if num_documents else 0
        num_bytes = int(stream.document_bytes[:num_documents].sum())
        if num_tokens == 0 or num_bytes == 0:
            raise UserError(f"evaluation set {stream.name} holds no text", do="name another file")
        ends = np.asarray(stream.document_ends[:num_documents])
        return cls(
            stream.name, stream.role, stream.tokens[:num_tokens], num_bytes, ends, end_of_text
        )

    def rows(self, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of equally long windows, each (B, T) int64: input t is the token
        before target t."""
        targets = np.stack([self.tokens[w.start : w.end] for w in batch]).astype(np.int64)
        before = [
            self.end_of_text if w.start == 0 else int(self.tokens[w.start - 1]) for w in batch
        ]
        inputs = np.concatenate(
            [np.array(before, dtype=np.int64)[:, None], targets[:, :-1]], axis=1
        )
        return torch.from_numpy(inputs), torch.from_numpy(targets)


class _Scorer:
    """Runs the extended model and the backbone over windows and adds up."""

    def __init__(self, model: nn.Module, reference: nn.Module | None, backbone: bool) -> None:
        self.model = model
        self.reference = reference
        self.backbone = backbone
        self.stats = ResidueStats(residue_layers(model))
        self.vocabulary = vocabulary_size(model)

    def score(
        self, text: _Text, plan: Sequence[Window], batch_rows: int, on_progress: OnProgress | None
    ) -> SetScore:
        """The sums over all windows of `plan`."""
        num_layers = len(self.stats.layers)
        by_token = TokenSums.empty(self.vocabulary, text.document_ends)
        sums = Sums(by_token, gates_zero=[0] * num_layers, squares=[0.0] * num_layers)
        for first in range(0, len(plan), batch_rows):
            batch = plan[first : first + batch_rows]
            self._add_batch(sums, text, batch)
            if not math.isfinite(sums.extended_nats + sums.backbone_nats + sums.kl_nats):
                raise UserError(
                    f"the loss on {text.name} is not finite",
                    do="lower the learning rate or the precision",
                )
            if on_progress is not None:
                on_progress(text.name, batch[-1].end, len(text.tokens))
        return self._set_score(text, sums)

    def _add_batch(self, sums: Sums, text: _Text, batch: Sequence[Window]) -> None:
        inputs_BT, targets_BT = text.rows(batch)
        scored_from = torch.tensor([w.scored_from - w.start for w in batch])
        scored_BT = torch.arange(inputs_BT.shape[1]) >= scored_from[:, None]
        keep = int(scored_BT.sum(1).max())
        self.stats.start(*inputs_BT.shape)
        with observe_residues(self.stats.layers, self.stats):
            extended_BKV = _last_logits(self.model, inputs_BT, keep)
        backbone_BKV = None
        if self.backbone:
            with as_backbone(self.model, self.reference) as backbone:
                backbone_BKV = _last_logits(backbone, inputs_BT, keep)
        sums.add_residues(self.stats, scored_BT)
        # Window by window, because its scored positions are its last ones: a slice, not a copy.
        for row, num_scored in enumerate(scored_BT.sum(1).tolist()):
            backbone_KV = None if backbone_BKV is None else backbone_BKV[row, -num_scored:]
            first = batch[row].end - num_scored
            sums.add_nats(
                extended_BKV[row, -num_scored:], backbone_KV, targets_BT[row, -num_scored:], first
            )

    def _set_score(self, text: _Text, sums: Sums) -> SetScore:
        gated = self.stats.gated
        return SetScore(
            name=text.name,
            role=text.role,
            num_tokens=len(text.tokens),
            num_bytes=text.num_bytes,
            num_documents=len(text.document_ends),
            extended_nats=sums.extended_nats,
            backbone_nats=sums.backbone_nats if self.backbone else None,
            kl_nats=sums.kl_nats if self.backbone else None,
            num_neutral_tokens=sums.num_neutral_tokens if gated else None,
            layers=self.stats.numbers,
            gates_zero_by_layer=tuple(sums.gates_zero) if gated else (),
            residue_square_sum_by_layer=tuple(sums.squares),
            hidden=self.stats.hidden,
            by_token=sums.by_token,
        )


def _last_logits(model: Any, inputs_BT: Tensor, keep: int) -> Tensor:
    """(B, K, V) logits of the last `keep` positions; a model that can is asked for no others."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    only = (
        {"logits_to_keep": keep}
        if "logits_to_keep" in inspect.signature(inner.forward).parameters
        else {}
    )
    device = next(inner.parameters()).device
    logits: Tensor = model(input_ids=inputs_BT.to(device), use_cache=False, **only).logits
    return logits[:, -keep:]


def vocabulary_size(model: Any) -> int:
    """Rows of the model's embedding: no token is larger."""
    return int(model.get_input_embeddings().num_embeddings)


def _check_settings(
    model: Any, *, context_tokens: int, stride_tokens: int, batch_rows: int
) -> None:
    for name, value in (("context_tokens", context_tokens), ("batch_rows", batch_rows)):
        if value < 1:
            raise UserError(name, got=value, allowed="1 or more")
    if not 1 <= stride_tokens <= context_tokens:
        raise UserError(
            "stride_tokens", got=stride_tokens, allowed=f"1 to context_tokens ({context_tokens})"
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and context_tokens > limit:
        raise UserError(
            "context_tokens", got=context_tokens, allowed=f"up to the model's own context, {limit}"
        )


def _check_texts(model: Any, texts: Sequence[_Text]) -> None:
    vocabulary = vocabulary_size(model)
    names = [text.name for text in texts]
    for text in texts:
        if names.count(text.name) > 1:
            raise UserError(
                "two evaluation sets have one name", got=text.name, do="give each its own"
            )
        largest = max(int(text.tokens.max()), text.end_of_text)
        if largest >= vocabulary:
            raise UserError(
                f"evaluation set {text.name} was made with another tokenizer: largest token",
                got=largest,
                allowed=f"below the model's vocabulary of {vocabulary}",
                do="tokenise it again",
            )
