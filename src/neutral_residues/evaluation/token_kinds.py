"""Kinds of the tokens of an evaluation set, and whether a few tokens cause most of its change.

"Adaptation Odyssey" (arXiv 2410.05581) reports that further training sometimes raises perplexity
because of a handful of uninformative tokens. Here each token type has the first of these kinds that
fits its text, without surrounding spaces:

    end of text         end-of-text and other special tokens
    partial characters  incomplete UTF-8 characters
    white space         only white space
    punctuation         no letters and no digits
    digits              at least one digit
    other script        a letter of another script than that of most letters in the set
    names               begins with a capital, and is not more frequent in lower case in the set
    frequent words      the most frequent of the remaining types that make up half of their tokens
    rare words          all others

Where we choose: a type is classified by its own text, not by the word that it is part of. So later
pieces of a name count as words, and "names" contains single capitals ("I"), words that mostly begin
sentences, and all nouns in German. A script is the first word in the Unicode name of a letter
("LATIN"); kana and Chinese characters count as one script. No torch.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from neutral_residues.results.set_result import Breakdown, TokenKind

REPLACEMENT = "\ufffd"
NO_SCRIPT = {"COMBINING", "VARIATION", "ZERO", "MODIFIER"}
"""First words in the Unicode names of marks that are used with any script."""
JAPANESE = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}

FEW_TYPES = 0.01
"""A change is concentrated if carriers are at most this share of the types in the set ..."""
FEW_TOKENS = 0.1
"""... and less than this share of its tokens, a fifth of the half that they contribute."""
LEAST_CHANGE = 0.001
"""Changes whose absolute values sum to less than this share of the backbone's loss are ignored."""


class Concentration(NamedTuple):
    """The token types that make up half of a change (carriers)."""

    carriers: tuple[int, ...]  # the smallest set of them, as indices, largest change first
    tokens_share: float  # share of the set's tokens that are carriers
    is_concentrated: bool  # whether carriers are few types and few tokens


def few_tokens_line(set_name: str, breakdown: Breakdown) -> str:
    """The warning for a set whose change is concentrated on a few tokens."""
    tokens = ", ".join(repr(carrier.text) for carrier in breakdown.carriers)
    return (
        f"{set_name}: half of all change is carried by {breakdown.num_carriers} of"
        f" {breakdown.num_types} different tokens, {100 * breakdown.carriers_share:.1f} % of the"
        f" text ({tokens}); the set's bits per byte say little about the rest of it"
    )


def classify(
    texts: Sequence[str], counts: Sequence[int], *, special: Collection[int] = ()
) -> list[TokenKind]:
    """The kind of each token type in a set.

    Args:
        texts: text of each type.
        counts: number of its occurrences.
        special: indices of special tokens.
    """
    main = _main_script(texts, counts)
    by_text: Counter[str] = Counter()
    for text, count in zip(texts, counts, strict=True):
        by_text[text.strip()] += count  # with and without its space
    kinds: list[TokenKind | None] = [_kind(text.strip(), main, by_text) for text in texts]
    for index in special:
        kinds[index] = "end of text"
    for index in _frequent([index for index, kind in enumerate(kinds) if kind is None], counts):
        kinds[index] = "frequent words"
    return [kind or "rare words" for kind in kinds]


def _kind(text: str, main: str, counts: Counter[str]) -> TokenKind | None:
    """The kind of a type, from its text; None for a word. `counts` are by text."""
    if REPLACEMENT in text:
        return "partial characters"
    if not text:
        return "white space"
    if any(unicodedata.category(char)[0] == "N" for char in text):
        return "digits"
    scripts = _scripts(text)
    if not scripts:
        return "punctuation"
    if any(script != main for script in scripts):
        return "other script"
    is_name = text[0].isupper() and counts[text] >= counts[text.lower()]
    return "names" if is_name else None


def _frequent(words: Sequence[int], counts: Sequence[int]) -> set[int]:
    """Indices of the most frequent words that make up half of all their tokens; among equally
    frequent ones, the first."""
    half, so_far, found = sum(counts[index] for index in words) / 2, 0, set()
    for index in sorted(words, key=lambda index: -counts[index]):
        if so_far >= half:
            break
        found.add(index)
        so_far += counts[index]
    return found


def _main_script(texts: Sequence[str], counts: Sequence[int]) -> str:
    letters: Counter[str] = Counter()
    for text, count in zip(texts, counts, strict=True):
        for script in _scripts(text):
            letters[script] += count
    return letters.most_common(1)[0][0] if letters else ""


def _scripts(text: str) -> list[str]:
    """The script of each letter, and of each vowel sign (Devanagari has them)."""
    letters = [char for char in text if unicodedata.category(char)[0] in "LM"]
    words = [unicodedata.name(char, "").partition(" ")[0] for char in letters]
    return [JAPANESE.get(word, word) for word in words if word not in NO_SCRIPT]


def concentration(
    counts_N: NDArray[np.int64], backbone_N: NDArray[np.float64], extended_N: NDArray[np.float64]
) -> Concentration:
    """Find the types that make up half of the change of a set, and whether they are few.

    A change is concentrated if half of it comes from at most a share `FEW_TYPES` of the types (or
    from one type) that are less than a share `FEW_TOKENS` of the tokens. The second condition is
    needed because frequent tokens contribute much to any change.

    Args:
        counts_N: number of occurrences of each of the N types in the set.
        backbone_N: nats of each type under the backbone, summed over occurrences.
        extended_N: the same under the extended model.
    """
    change_N = np.abs(extended_N - backbone_N)
    total = float(change_N.sum())
    if total == 0:
        return Concentration((), 0.0, False)
    order_N = np.argsort(-change_N, kind="stable")
    num_carriers = int(np.searchsorted(np.cumsum(change_N[order_N]), total / 2)) + 1
    carriers = order_N[:num_carriers]
    tokens_share = float(counts_N[carriers].sum() / counts_N.sum())
    few = num_carriers <= max(1, FEW_TYPES * len(counts_N)) and tokens_share < FEW_TOKENS
    matters = total >= LEAST_CHANGE * float(backbone_N.sum())
    return Concentration(tuple(carriers.tolist()), tokens_share, few and matters)
