"""What kinds of tokens an evaluation set consists of, and whether a few of them carry its change.

After "Adaptation Odyssey" (arXiv 2410.05581): further training sometimes makes perplexity worse,
and a handful of uninformative tokens is behind it. Each token type gets the first kind that fits
its text, without spaces around it:

    end of text         the end-of-text token, and other special ones
    partial characters  bytes that are not a character by themselves
    white space         nothing but it
    punctuation         neither letter nor digit
    digits              at least one digit
    other script        a letter of another script than most letters of the set's tokens have
    names               begins with a capital; in small letters it occurs no more often in the set
    frequent words      of the remaining types the most frequent, up to half of their tokens
    rare words          the rest

Where we choose: a type is judged by its own text, not by the word that it is part of. So a name's
later pieces count as words; "names" holds single capitals ("I"), words that mostly begin sentences,
and in German every noun. A script is the first word of a letter's Unicode name ("LATIN"); kana and
Chinese characters count as one. No torch.
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
"""Marks that stand with letters of any script, or with none."""
JAPANESE = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK"}

FEW_TYPES = 0.01
"""Share of the occurring token types that counts as few."""
FEW_TOKENS = 0.1
"""Share of the tokens that counts as few: half of all change is then five times their share."""
LEAST_CHANGE = 0.001
"""Changes that sum to less than this share of the backbone's loss need no explanation."""


class Concentration(NamedTuple):
    """How few token types carry the change."""

    carriers: tuple[int, ...]  # the fewest that carry half of it, as indices; largest first
    tokens_share: float  # share of the tokens that they are
    is_concentrated: bool  # whether they are both few types and few tokens


def few_tokens_line(set_name: str, breakdown: Breakdown) -> str:
    """The warning about a change that a few tokens carry."""
    tokens = ", ".join(repr(carrier.text) for carrier in breakdown.carriers)
    return (
        f"{set_name}: half of all change is carried by {breakdown.num_carriers} of"
        f" {breakdown.num_types} different tokens, {100 * breakdown.carriers_share:.1f} % of the"
        f" text ({tokens}); the set's bits per byte say little about the rest of it"
    )


def classify(
    texts: Sequence[str], counts: Sequence[int], *, special: Collection[int] = ()
) -> list[TokenKind]:
    """The kind of each token type that occurs in a set, by its own text and how often it occurs;
    `special` are indices of the special tokens."""
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
    """The kind of a type from its text alone; None for a word."""
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
    """The most frequent words that make up half of all; of equally frequent ones the first."""
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
    """The script of each letter, and of each vowel sign that is written like one."""
    letters = [char for char in text if unicodedata.category(char)[0] in "LM"]
    words = [unicodedata.name(char, "").partition(" ")[0] for char in letters]
    return [JAPANESE.get(word, word) for word in words if word not in NO_SCRIPT]


def concentration(
    counts_N: NDArray[np.int64], backbone_N: NDArray[np.float64], extended_N: NDArray[np.float64]
) -> Concentration:
    """Whether few of the N occurring types carry the change of a set.

    A change is concentrated if half of it comes from at most `FEW_TYPES` of the types (or a single
    one) that are less than `FEW_TOKENS` of the tokens: frequent tokens carry much of any change.
    Arguments are (N,): how often each type occurs, and its nats.
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
