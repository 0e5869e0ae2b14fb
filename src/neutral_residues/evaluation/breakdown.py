"""Why the bits per byte of an evaluation set moved: sums by token and document, with their texts,
for the record."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neutral_residues.evaluation.evaluate import ScorableText
from neutral_residues.evaluation.metrics import SetScore, TokenSums, bits_per_byte
from neutral_residues.evaluation.token_kinds import KINDS, classify, concentration
from neutral_residues.results.record import Breakdown, DocumentChange, TokenChange, TokenClass

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_CARRIERS = 12
"""So many tokens are named."""
NUM_DOCUMENTS = 3
"""So many documents are shown."""
EXCERPT_CHARACTERS = 200


def breakdowns(
    scores: Sequence[SetScore],
    streams: Sequence[ScorableText],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Breakdown]:
    """One for each set that both models were measured on.

    Args:
        streams: the texts behind the scores, in the same order.
    """
    return [
        _breakdown(score, score.by_token, stream, tokenizer)
        for score, stream in zip(scores, streams, strict=True)
        if score.by_token is not None and score.backbone_nats is not None
    ]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Each token's own text, with the blank that it begins with; bytes that are no letter show as
    U+FFFD."""
    # Some tokenizers drop the blank of the first token that they decode, so none of these is the
    # first.
    before = tokenizer.encode("x", add_special_tokens=False)[-1:]
    start = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    texts = [tokenizer.decode([*before, id], clean_up_tokenization_spaces=False) for id in ids]
    return [text.removeprefix(start) for text in texts]


def _breakdown(
    score: SetScore, sums: TokenSums, stream: ScorableText, tokenizer: "PreTrainedTokenizerBase"
) -> Breakdown:
    ids = np.flatnonzero(sums.counts_V)
    counts, backbone, extended = sums.counts_V[ids], sums.backbone_V[ids], sums.extended_V[ids]
    texts = token_texts(tokenizer, ids.tolist())
    special = set(np.flatnonzero(np.isin(ids, tokenizer.all_special_ids)).tolist())
    kinds = np.array(classify(texts, counts.tolist(), special=special))
    found = concentration(counts, backbone, extended)
    return Breakdown(
        set=score.name,
        role=score.role,
        classes=[
            TokenClass(
                kind=kind,
                num_types=int((kinds == kind).sum()),
                num_tokens=int(counts[kinds == kind].sum()),
                backbone=bits_per_byte(float(backbone[kinds == kind].sum()), score.num_bytes),
                extended=bits_per_byte(float(extended[kinds == kind].sum()), score.num_bytes),
            )
            for kind in KINDS
            if kind in kinds
        ],
        num_types=len(ids),
        num_carriers=len(found.carriers),
        carriers_share=found.tokens_share,
        carriers=[
            TokenChange(
                text=texts[place],
                num_tokens=int(counts[place]),
                change=bits_per_byte(float(extended[place] - backbone[place]), score.num_bytes),
            )
            for place in found.carriers[:NUM_CARRIERS]
        ],
        is_concentrated=found.is_concentrated,
        documents=_worst_documents(sums, stream, tokenizer),
    )


def _worst_documents(
    sums: TokenSums, stream: ScorableText, tokenizer: "PreTrainedTokenizerBase"
) -> list[DocumentChange]:
    """Those with the largest rise in bits per byte, of all that are at least half as long as the
    median."""
    bytes_D = np.asarray(stream.document_bytes[: len(sums.ends_D)])
    per_byte_D = 1 / (math.log(2) * np.maximum(bytes_D, 1))
    rise_D = (sums.extended_D - sums.backbone_D) * per_byte_D
    long_enough = np.flatnonzero(bytes_D >= max(1.0, float(np.median(bytes_D)) / 2))
    worst = long_enough[np.argsort(-rise_D[long_enough], kind="stable")][:NUM_DOCUMENTS]
    return [
        DocumentChange(
            number=int(document),
            num_bytes=int(bytes_D[document]),
            backbone=float(sums.backbone_D[document] * per_byte_D[document]),
            extended=float(sums.extended_D[document] * per_byte_D[document]),
            excerpt=_excerpt(stream, int(document), tokenizer),
        )
        for document in worst
    ]


def _excerpt(stream: ScorableText, document: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    start = int(stream.document_ends[document - 1]) if document else 0
    end = min(int(stream.document_ends[document]), start + EXCERPT_CHARACTERS)
    text = str(tokenizer.decode(stream.tokens[start:end].tolist(), skip_special_tokens=True))
    return " ".join(text.split())[:EXCERPT_CHARACTERS]
