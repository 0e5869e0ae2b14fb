"""Measures backbone and extended model on the same text, in one pass.

    results = evaluate(model, streams, Windows(0, context_tokens=1024, stride_tokens=512))
    results["wiki"].rise_percent                        all ratios: `results/set_result.py`

For each batch of windows first the extended model runs, then the backbone: the same weights with
the extension disabled or, for a fully fine-tuned model, a separate `reference`. Windows on which
no gate opens, found by reading their tokens alone, are run once for both. Results are sums
(`SetResult`) of nats, bytes and tokens.

Guarantees: every token of a stream is scored exactly once, including end-of-text tokens; of chats,
only the assistant's tokens. The first token of a stream is predicted from the end-of-text token.
All windows of a stream have the same length, so that there is no padding. Weights, training mode,
`requires_grad` and the active extension are not changed.

Suffixes: B windows, T inputs of a window, K its last positions (all that is scored), V vocabulary.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.backbone import context_length
from neutral_residues.config.base import one_line
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.errors import UserError
from neutral_residues.evaluation.breakdown import breakdown
from neutral_residues.evaluation.inference import as_backbone, inference, untouched_rows
from neutral_residues.evaluation.possible import Pieces, possible_stream
from neutral_residues.evaluation.sums import ResidueStats, Sums, TokenSums
from neutral_residues.evaluation.windows import Window, Windows
from neutral_residues.results.set_result import EvaluationSet, SetResult
from neutral_residues.tuner.embeddings import embeddings_layer
from neutral_residues.tuner.layer import observe_residues, residue_layers

OnProgress = Callable[[str, int, int], None]
"""Called after each batch with the set's name, the tokens scored so far and the tokens in all."""


def evaluate(
    model: nn.Module,
    streams: Sequence[TokenStream],
    windows: Windows,
    *,
    reference: nn.Module | None = None,
    backbone_streams: Sequence[TokenStream] = (),
    pieces: Pieces = (),
    backbone_nats: Mapping[str, float] | None = None,
    max_tokens: int | None = None,
    kl: bool = False,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, SetResult]:
    """Score each stream with the extended model and with its backbone, without autocast.

    Args:
        model: the extended model: a PEFT model, or any model if `reference` is given.
        reference: the backbone, if disabling the extension does not give it (full fine-tuning);
            `model` itself if nothing is trained yet.
        backbone_streams: the same texts in the backbone's tokens (matched by name), if the model
            has new tokens.
        pieces: for each new token, the backbone's tokens that spell the same text; see
            `possible.py`.
        backbone_nats: name of the stream -> nats under the backbone, if known; the backbone is then
            not run.
        max_tokens: measure only the first documents of each stream, as many as fit into this number
            of tokens, but at least one.
        kl: measure the KL divergence from the backbone too.
        tokenizer: the tokenizer of the streams; with it, results have a breakdown by tokens and
            documents.

    Returns:
        Name of the stream -> its results.

    Raises:
        UserError: for an empty stream, one of another tokenizer, a setting out of range, a model
            without backbone, or a loss that is not finite.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError("max_tokens", got=max_tokens, allowed="1 or more")
    if kl and backbone_nats is not None:
        raise UserError("kl needs the backbone", got="backbone_nats", do="leave out one of them")
    if max_tokens is not None:
        streams = [stream.first_documents(max_tokens) for stream in streams]
    numbers = {stream.name: stream.num_documents for stream in streams}
    own = {s.name: s.documents(numbers[s.name]) for s in backbone_streams if s.name in numbers}
    _check_context(model, windows)
    _check_streams(model, streams, windows.end_of_text)
    stats, vocabulary = ResidueStats(residue_layers(model)), vocabulary_size(model)
    scorer = _Scorer(
        model,
        reference,
        windows.for_vocabulary(vocabulary),
        vocabulary - len(pieces),
        own,
        pieces,
        backbone_nats,
        kl,
        tokenizer,
        on_progress,
        stats,
    )
    with inference(model, reference):
        return {stream.name: scorer.score(stream) for stream in streams}


def evaluation_set(stream: TokenStream, own: TokenStream | None = None) -> EvaluationSet:
    """Facts about an evaluation set for a record. `own` is the same text in the backbone's tokens,
    if the extended model has new ones."""
    own = _if_other(own, stream)
    return EvaluationSet(
        role=stream.role,
        key=(own or stream).content_hash(),
        num_bytes=stream.num_bytes,
        num_tokens=stream.num_predicted,
        backbone_tokens=own.num_predicted if own else None,
        num_documents=stream.num_documents,
    )


@dataclass(frozen=True, eq=False)
class _Scorer:
    """Runs both models over windows and sums the results; see `evaluate` for the fields."""

    model: nn.Module
    reference: nn.Module | None
    windows: Windows
    vocabulary: int  # size of the backbone's vocabulary
    own: Mapping[str, TokenStream]
    pieces: Pieces
    backbone_nats: Mapping[str, float] | None
    kl: bool
    tokenizer: PreTrainedTokenizerBase | None
    on_progress: OnProgress | None
    stats: ResidueStats

    def score(self, stream: TokenStream) -> SetResult:
        """Measure both models on all windows of `stream`."""
        own = _if_other(self.own.get(stream.name), stream)
        if own is not None:
            stream = possible_stream(self.model, stream, self.windows, self.pieces)
        by_token, num_layers = None, len(self.stats.layers)
        if self.tokenizer is not None and own is None:
            by_token = TokenSums.empty(vocabulary_size(self.model), stream.document_ends)
        kl_nats = 0.0 if self.kl and own is None else None
        sums = Sums(by_token, kl_nats, [0] * num_layers, [0.0] * num_layers)
        for batch in self.windows.batches(stream.num_tokens):
            for part, is_same in self._parts(stream, batch, paired=own is None):
                self._add_batch(sums, stream, part, paired=own is None, is_same=is_same)
            if not math.isfinite(sums.extended_nats + sums.backbone_nats + (sums.kl_nats or 0)):
                do = "lower the learning rate or the precision"
                raise UserError(f"the loss on {stream.name} is not finite", do=do)
            if self.on_progress is not None:
                self.on_progress(stream.name, batch[-1].end, stream.num_tokens)
        if own is not None and self.backbone_nats is None:
            sums.backbone_nats = self._nats_of_backbone(own)
        known, explained = self.backbone_nats, None
        if by_token and self.tokenizer:
            explained = breakdown(by_token, stream, self.tokenizer)
        try:
            return SetResult(
                **dict(evaluation_set(stream, own)),
                backbone_nats=sums.backbone_nats if known is None else known[stream.name],
                extended_nats=sums.extended_nats,
                kl_nats=sums.kl_nats,
                num_neutral_tokens=sums.num_neutral_tokens if self.stats.gated else None,
                layers=sums.layer_results(self.stats, stream.num_predicted),
                breakdown=explained,
            )
        except ValidationError as error:  # finite losses so large that perplexities overflow
            raise one_line(error, SetResult, file=f"measured on {stream.name}") from error

    def _parts(
        self, stream: TokenStream, batch: Sequence[Window], *, paired: bool
    ) -> list[tuple[Sequence[Window], bool]]:
        """The windows of a batch on which the outputs of both models are the same, and the others.
        Each part is a batch of its own for both models, so that their numbers round alike."""
        if paired and self.reference is self.model:
            return [(batch, True)]
        if not paired or self.reference is not None or self.backbone_nats is not None:
            return [(batch, False)]
        same_B = untouched_rows(self.model, self.windows.rows(stream.tokens, batch)[0]).tolist()
        parts: dict[bool, list[Window]] = {True: [], False: []}
        for window, is_same in zip(batch, same_B, strict=True):
            parts[is_same].append(window)
        return [(part, is_same) for is_same, part in parts.items() if part]

    def _nats_of_backbone(self, own: TokenStream) -> float:
        """Nats of a text in the backbone's tokens under the backbone."""
        sums = Sums(None, None, [], [])
        with as_backbone(self.model, self.reference) as backbone:
            for batch in self.windows.batches(own.num_tokens):
                inputs_BT, targets_BT = self.windows.rows(own.tokens, batch)
                scored_BT, keep = _scored(own, batch)
                logits_BKV = self._backbone_logits(backbone, inputs_BT, keep)
                _add_rows(sums, logits_BKV, None, targets_BT, scored_BT, batch)
        return sums.extended_nats

    def _backbone_logits(self, backbone: nn.Module, inputs_BT: Tensor, keep: int) -> Tensor:
        """Logits of the backbone, without those of new tokens, which a backbone with appended rows
        (`wider_tables.py`) computes too."""
        return last_logits(backbone, inputs_BT, keep)[..., : self.vocabulary]

    def _add_batch(
        self,
        sums: Sums,
        stream: TokenStream,
        batch: Sequence[Window],
        *,
        paired: bool,
        is_same: bool,
    ) -> None:
        inputs_BT, targets_BT = self.windows.rows(stream.tokens, batch)
        scored_BT, keep = _scored(stream, batch)
        self.stats.start(*inputs_BT.shape)
        with observe_residues(self.stats.layers, self.stats):
            extended_BKV = last_logits(self.model, inputs_BT, keep)
        backbone_BKV = None
        if is_same:
            backbone_BKV = extended_BKV[..., : self.vocabulary]
        elif paired and self.backbone_nats is None:
            with as_backbone(self.model, self.reference) as backbone:
                backbone_BKV = self._backbone_logits(backbone, inputs_BT, keep)
        sums.add_residues(self.stats, scored_BT)
        _add_rows(sums, extended_BKV, backbone_BKV, targets_BT, scored_BT, batch)


def _if_other(own: TokenStream | None, stream: TokenStream) -> TokenStream | None:
    """`own`, the text in the backbone's tokens; None if `stream` has the same tokens."""
    return None if own is None or np.array_equal(own.tokens, stream.tokens) else own


def _scored(stream: TokenStream, batch: Sequence[Window]) -> tuple[Tensor, int]:
    """(B, T) whether each target of these windows is scored, and the number K of last positions of
    a window that contain all scored ones."""
    scored_from = torch.tensor([w.scored_from - w.start for w in batch])
    num_inputs = batch[0].end - batch[0].start
    scored_BT = torch.arange(num_inputs) >= scored_from[:, None]
    if stream.predicted is not None:
        rows = [stream.predicted[w.start : w.end] for w in batch]
        scored_BT &= torch.from_numpy(np.stack(rows))
    return scored_BT, num_inputs - int(scored_from.min())


def _add_rows(
    sums: Sums,
    extended_BKV: Tensor,
    backbone_BKV: Tensor | None,
    targets_BT: Tensor,
    scored_BT: Tensor,
    batch: Sequence[Window],
) -> None:
    """Add the nats of a batch to `sums`, window by window: scored positions are the last ones of a
    window, so that their logits are a slice and not a copy (except for chats)."""
    for row, window in enumerate(batch):
        num_last = window.end - window.scored_from
        last_K = scored_BT[row, -num_last:]
        keep = slice(None) if last_K.all() else last_K
        positions_K = np.arange(window.scored_from, window.end)[last_K.numpy()]
        sums.add_nats(
            extended_BKV[row, -num_last:][keep],
            None if backbone_BKV is None else backbone_BKV[row, -num_last:][keep],
            targets_BT[row, -num_last:][keep],
            positions_K,
        )


def last_logits(model: Any, inputs_BT: Tensor, keep: int) -> Tensor:
    """(B, K, V) logits of the last K = `keep` positions; computes only these if the model's
    `forward` has `logits_to_keep`."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    keeps = "logits_to_keep" in inspect.signature(inner.forward).parameters
    only = {"logits_to_keep": keep} if keeps else {}
    device = next(inner.parameters()).device
    logits: Tensor = model(input_ids=inputs_BT.to(device), use_cache=False, **only).logits
    return logits[:, -keep:]


def vocabulary_size(model: Any) -> int:
    """Number of token ids that the model accepts, new tokens included."""
    layer = embeddings_layer(model)
    if layer is not None:
        return layer.vocabulary_size
    embeddings = model.get_input_embeddings()
    return int(getattr(embeddings, "original_module", embeddings).num_embeddings)  # PEFT's wrapper


def _check_context(model: Any, windows: Windows) -> None:
    limit = context_length(model.config)
    if limit is not None and windows.context_tokens > limit:
        allowed = f"up to the model's own context, {limit}"
        raise UserError("context_tokens", got=windows.context_tokens, allowed=allowed)


def _check_streams(model: Any, streams: Sequence[TokenStream], end_of_text: int) -> None:
    vocabulary = vocabulary_size(model)
    names = [stream.name for stream in streams]
    for stream in streams:
        if stream.num_tokens == 0 or stream.num_bytes == 0:
            raise UserError(f"evaluation set {stream.name} holds no text", do="name another file")
        if names.count(stream.name) > 1:
            do = "give each its own"
            raise UserError("two evaluation sets have one name", got=stream.name, do=do)
        largest = max(int(stream.tokens.max()), end_of_text)
        if largest >= vocabulary:
            raise UserError(
                f"evaluation set {stream.name} was made with another tokenizer: largest token",
                got=largest,
                allowed=f"below the model's vocabulary of {vocabulary}",
                do="tokenise it again",
            )
