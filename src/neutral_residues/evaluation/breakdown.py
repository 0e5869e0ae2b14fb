"""Explains the change in bits per byte of a set: contributions by token and by document."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.sums import TokenSums
from neutral_residues.evaluation.token_kinds import classify, concentration
from neutral_residues.results.set_result import (
    KINDS,
    Breakdown,
    DocumentChange,
    TokenChange,
    TokenClass,
    bits_per_byte,
)

NUM_CARRIERS = 12
"""Tokens listed per set."""
NUM_DOCUMENTS = 3
"""Documents listed per set."""
EXCERPT_CHARACTERS = 200


def breakdown(
    sums: TokenSums, stream: TokenStream, tokenizer: PreTrainedTokenizerBase
) -> Breakdown:
    """Contribution of each kind of tokens, the tokens that changed most, and the documents that got
    worst. `sums` must contain every predicted token of `stream`."""
    token_ids = np.flatnonzero(sums.counts_V)
    counts = sums.counts_V[token_ids]
    backbone, extended = sums.backbone_V[token_ids], sums.extended_V[token_ids]
    texts = token_texts(tokenizer, token_ids.tolist())
    special = set(np.flatnonzero(np.isin(token_ids, tokenizer.all_special_ids)).tolist())
    kinds = np.array(classify(texts, counts.tolist(), special=special))
    found = concentration(counts, backbone, extended)

    def bits(nats: Any) -> float:
        return bits_per_byte(float(nats), stream.num_bytes)

    classes = [
        TokenClass(
            kind=kind,
            num_types=int(ours.sum()),
            num_tokens=int(counts[ours].sum()),
            backbone=bits(backbone[ours].sum()),
            extended=bits(extended[ours].sum()),
        )
        for kind in KINDS
        if (ours := kinds == kind).any()
    ]
    carriers = [
        TokenChange(
            text=texts[i], num_tokens=int(counts[i]), change=bits(extended[i] - backbone[i])
        )
        for i in found.carriers[:NUM_CARRIERS]
    ]
    return Breakdown(
        classes=classes,
        num_types=len(token_ids),
        num_carriers=len(found.carriers),
        carriers_share=found.tokens_share,
        carriers=carriers,
        is_concentrated=found.is_concentrated,
        documents=_worst_documents(sums, stream, tokenizer),
    )


def token_texts(tokenizer: Any, token_ids: Sequence[int]) -> list[str]:
    """Text of each token, with its leading space; incomplete UTF-8 characters become U+FFFD."""
    # Some tokenizers drop the space of the first token that they decode, so that each token is
    # decoded after another one.
    before = tokenizer.encode("x", add_special_tokens=False)[-1:]
    start = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    return [
        tokenizer.decode([*before, token], clean_up_tokenization_spaces=False).removeprefix(start)
        for token in token_ids
    ]


def _worst_documents(
    sums: TokenSums, stream: TokenStream, tokenizer: PreTrainedTokenizerBase
) -> list[DocumentChange]:
    """The documents whose bits per byte rose most, among those at least half as long as the
    median."""
    bytes_D = np.asarray(stream.document_bytes)
    rise_D = (sums.extended_D - sums.backbone_D) / np.maximum(bytes_D, 1)
    long_enough = np.flatnonzero(bytes_D >= max(1.0, float(np.median(bytes_D)) / 2))
    worst = long_enough[np.argsort(-rise_D[long_enough], kind="stable")][:NUM_DOCUMENTS]
    found = []
    for number in worst.tolist():
        num_bytes = int(bytes_D[number])
        backbone, extended = (
            float(nats_D[number]) for nats_D in (sums.backbone_D, sums.extended_D)
        )
        text = stream.document_text(number, tokenizer, max_tokens=EXCERPT_CHARACTERS)
        change = DocumentChange(
            number=number,
            num_bytes=num_bytes,
            backbone=bits_per_byte(backbone, num_bytes),
            extended=bits_per_byte(extended, num_bytes),
            excerpt=" ".join(text.split())[:EXCERPT_CHARACTERS],
        )
        found.append(change)
    return found
