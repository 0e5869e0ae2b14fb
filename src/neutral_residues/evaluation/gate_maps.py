"""Block gates of every layer on every token of short texts, for the gate heat map.

By default there are three texts: the beginnings of the first source set and of the first target
set, and a mixture that switches between the two every few words. The gate shown at a token is the
one that the model computes from the input up to that token.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from neutral_residues.backbone import context_length
from neutral_residues.data.token_stream import TokenStream
from neutral_residues.evaluation.inference import inference
from neutral_residues.results.record import GateText
from neutral_residues.tuner.layer import (
    AnyResidue,
    NeutralResiduesLayer,
    layer_numbers,
    observe_residues,
    residue_layers,
)

MAX_TOKENS = 96
WORDS_PER_SWITCH = 8


class NamedText(NamedTuple):
    """A text for the heat map."""

    name: str
    kind: Literal["source", "target", "code-switched", "own"]
    text: str


class _Gates:
    """Residue hook that stores the gates of one forward pass by layer; with several extensions, the
    largest gate at each token."""

    def __init__(self) -> None:
        self.by_layer: dict[int, list[float]] = {}

    def on_residue(
        self, layer: NeutralResiduesLayer, residue: AnyResidue, base_output: Tensor, name: str
    ) -> None:
        if residue.gate is not None:
            gates = residue.gate.float().flatten().tolist()
            before = self.by_layer.get(id(layer), gates)
            self.by_layer[id(layer)] = [max(pair) for pair in zip(gates, before, strict=True)]


def default_texts(
    streams: Sequence[TokenStream], tokenizer: PreTrainedTokenizerBase, own: Sequence[str] = ()
) -> list[NamedText]:
    """The beginnings of the first source and target set, a mixture of both, and the texts in
    `own`."""
    found: dict[str, NamedText] = {}
    for stream in streams:
        if stream.role not in found:
            text = stream.document_text(0, tokenizer, max_tokens=2 * MAX_TOKENS)
            found[stream.role] = NamedText(stream.name, stream.role, text)
    if len(found) == 2:
        mixed = code_switched(found["source"].text, found["target"].text)
        found["mixed"] = NamedText("code-switched", "code-switched", mixed)
    owned = [NamedText(f"text {number}", "own", text) for number, text in enumerate(own, start=1)]
    return [*found.values(), *owned]


def code_switched(source: str, target: str) -> str:
    """Alternate between the words of two texts, `WORDS_PER_SWITCH` at a time."""
    words = [text.split() for text in (source, target)]
    length = min(len(part) for part in words)
    turns = range(0, max(1, length), WORDS_PER_SWITCH)
    return " ".join(" ".join(part[i : i + WORDS_PER_SWITCH]) for i in turns for part in words)


def gate_texts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[NamedText],
    *,
    end_of_text: int,
) -> list[GateText]:
    """Compute the gates on the first `MAX_TOKENS` tokens of each text (fewer if the context is
    shorter). Empty for a model without gates."""
    layers = residue_layers(model)
    if not layers:
        return []
    device = next(model.parameters()).device
    longest = min(MAX_TOKENS, (context_length(model.config) or MAX_TOKENS + 1) - 1)
    found = []
    for text in texts:
        ids = tokenizer(text.text, add_special_tokens=False)["input_ids"][:longest]
        gates = _Gates()
        with inference(model), observe_residues(layers, gates):
            model(input_ids=torch.tensor([[end_of_text, *ids]], device=device), use_cache=False)
        if ids and len(gates.by_layer) == len(layers):
            gate_text = GateText(
                name=text.name,
                kind=text.kind,
                tokens=token_pieces(tokenizer, ids),
                layers=list(layer_numbers(layers)),
                gates=[gates.by_layer[id(layer)][1:] for layer in layers.values()],
            )
            found.append(gate_text)
    return found


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined, these are the whole text. A token that ends inside a
    UTF-8 character adds nothing; the one that completes it adds the character."""
    whole = tokenizer.decode(list(ids))
    ends = [_common_length(tokenizer.decode(list(ids[: i + 1])), whole) for i in range(len(ids))]
    starts = [0, *ends[:-1]]
    return [whole[start:end] for start, end in zip(starts, ends, strict=True)]


def _common_length(one: str, other: str) -> int:
    """Length of the common beginning of two texts."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
