"""Backbone and extended model on the same text, in one pass: what was learnt and what was forgotten.

    results = evaluate(model, streams, end_of_text=0, context_tokens=1024)
    results["wiki"].rise_percent                        every ratio: `results/set_result.py`

For each batch of windows the extended model runs, then the backbone: from the same weights, with
the extension switched off, or, for a fully fine-tuned model, from a separate `reference`. What
comes out are sums (`SetResult`): nats, bytes, tokens.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.breakdown import breakdown
from neutral_residues.evaluation.sums import ResidueStats, Sums, TokenSums
from neutral_residues.evaluation.windows import Window, window_rows, windows
from neutral_residues.results.set_result import EvaluationSet, SetResult
from neutral_residues.tuner.layer import observe_residues, residue_layers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnProgress = Callable[[str, int, int], None]
"""Called after each batch with the set's name, the tokens scored so far and the tokens in all."""


def evaluate(
    model: nn.Module,
    streams: Sequence[TokenStream],
    *,
    end_of_text: int,
    context_tokens: int,
    stride_tokens: int | None = None,
    batch_rows: int = 8,
    reference: nn.Module | None = None,
    backbone_nats: Mapping[str, float] | None = None,
    max_tokens: int | None = None,
    kl: bool = False,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    on_progress: OnProgress | None = None,
) -> dict[str, SetResult]:
    """Score each stream with the extended model and its backbone. Nothing is run under autocast.

    Args:
        model: the extended model: PEFT's, or one that `reference` is given for.
        end_of_text: token that stands before the first one.
        context_tokens: inputs of a window.
        stride_tokens: new targets of each further window; None takes half of the context.
        batch_rows: windows at a time; changes results by float noise only.
        reference: the backbone, where switching the extension off does not give it (full
            fine-tuning); `model` itself while nothing is trained.
        backbone_nats: nats of each stream under the backbone where they are known already; it is
            not run then.
        max_tokens: measure only the first whole documents, as many as fit in so many tokens, but at
            least one.
        kl: measure the KL divergence from the backbone too.
        tokenizer: of the streams; with it the results have a breakdown by kinds of tokens.

    Returns:
        A result for each stream, by its name.

    Raises:
        UserError: for a setting out of range, an empty or foreign stream, a model without backbone,
            or a loss that is not finite.
    """
    stride_tokens = max(1, context_tokens // 2) if stride_tokens is None else stride_tokens
    if kl and backbone_nats is not None:
        raise UserError("kl needs the backbone", got="backbone_nats", do="leave out one of them")
    _check_settings(
        model,
        context_tokens=context_tokens,
        stride_tokens=stride_tokens,
        batch_rows=batch_rows,
        max_tokens=max_tokens,
    )
    if max_tokens is not None:
        streams = [stream.first_documents(max_tokens) for stream in streams]
    _check_streams(model, streams, end_of_text)
    scorer = _Scorer(model, reference, end_of_text, batch_rows, on_progress)
    results = {}
    with inference(model, reference):
        for stream in streams:
            plan = list(
                windows(
                    stream.num_tokens, context_tokens=context_tokens, stride_tokens=stride_tokens
                )
            )
            known = None if backbone_nats is None else backbone_nats[stream.name]
            results[stream.name] = scorer.score(stream, plan, known, kl, tokenizer)
    return results


def evaluation_set(stream: TokenStream) -> EvaluationSet:
    """What a record says of a text that is measured."""
    return EvaluationSet(
        role=stream.role,
        key=stream.content_hash(),
        num_bytes=stream.num_bytes,
        num_tokens=stream.num_tokens,
        num_documents=stream.num_documents,
    )


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


class _Scorer:
    """Runs the extended model and the backbone over windows and adds up."""

    def __init__(
        self,
        model: nn.Module,
        reference: nn.Module | None,
        end_of_text: int,
        batch_rows: int,
        on_progress: OnProgress | None,
    ) -> None:
        self.model, self.reference = model, reference
        self.end_of_text, self.batch_rows = end_of_text, batch_rows
        self.on_progress = on_progress
        self.stats = ResidueStats(residue_layers(model))

    def score(
        self,
        stream: TokenStream,
        plan: Sequence[Window],
        backbone_nats: float | None,
        kl: bool,
        tokenizer: "PreTrainedTokenizerBase | None",
    ) -> SetResult:
        """The sums over all windows of `plan`."""
        num_layers = len(self.stats.layers)
        by_token = None
        if tokenizer is not None:
            by_token = TokenSums.empty(vocabulary_size(self.model), stream.document_ends)
        sums = Sums(
            by_token=by_token,
            kl_nats=0.0 if kl else None,
            gates_zero=[0] * num_layers,
            squares=[0.0] * num_layers,
        )
        for first in range(0, len(plan), self.batch_rows):
            batch = plan[first : first + self.batch_rows]
            self._add_batch(sums, stream, batch, runs_backbone=backbone_nats is None)
            if not math.isfinite(sums.extended_nats + sums.backbone_nats + (sums.kl_nats or 0)):
                raise UserError(
                    f"the loss on {stream.name} is not finite",
                    do="lower the learning rate or the precision",
                )
            if self.on_progress is not None:
                self.on_progress(stream.name, batch[-1].end, stream.num_tokens)
        return SetResult(
            **dict(evaluation_set(stream)),
            backbone_nats=sums.backbone_nats if backbone_nats is None else backbone_nats,
            extended_nats=sums.extended_nats,
            kl_nats=sums.kl_nats,
            num_neutral_tokens=sums.num_neutral_tokens if self.stats.gated else None,
            layers=sums.layer_results(self.stats, stream.num_tokens),
            breakdown=breakdown(by_token, stream, tokenizer) if by_token and tokenizer else None,
        )

    def _add_batch(
        self, sums: Sums, stream: TokenStream, batch: Sequence[Window], *, runs_backbone: bool
    ) -> None:
        inputs_BT, targets_BT = window_rows(stream.tokens, batch, end_of_text=self.end_of_text)
        scored_from = torch.tensor([w.scored_from - w.start for w in batch])
        scored_BT = torch.arange(inputs_BT.shape[1]) >= scored_from[:, None]
        keep = int(scored_BT.sum(1).max())
        self.stats.start(*inputs_BT.shape)
        with observe_residues(self.stats.layers, self.stats):
            extended_BKV = _last_logits(self.model, inputs_BT, keep)
        backbone_BKV = None
        if self.reference is self.model:
            backbone_BKV = extended_BKV
        elif runs_backbone:
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
    model: Any, *, context_tokens: int, stride_tokens: int, batch_rows: int, max_tokens: int | None
) -> None:
    at_least_one = {
        "context_tokens": context_tokens,
        "batch_rows": batch_rows,
        "max_tokens": max_tokens,
    }
    for name, value in at_least_one.items():
        if value is not None and value < 1:
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


def _check_streams(model: Any, streams: Sequence[TokenStream], end_of_text: int) -> None:
    vocabulary = vocabulary_size(model)
    names = [stream.name for stream in streams]
    for stream in streams:
        if stream.num_tokens == 0 or stream.num_bytes == 0:
            raise UserError(f"evaluation set {stream.name} holds no text", do="name another file")
        if names.count(stream.name) > 1:
            raise UserError(
                "two evaluation sets have one name", got=stream.name, do="give each its own"
            )
        largest = max(int(stream.tokens.max()), end_of_text)
        if largest >= vocabulary:
            raise UserError(
                f"evaluation set {stream.name} was made with another tokenizer: largest token",
                got=largest,
                allowed=f"below the model's vocabulary of {vocabulary}",
                do="tokenise it again",
            )
