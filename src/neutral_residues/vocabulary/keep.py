"""Decides which pairs of tokens may be merged, so that source text keeps its tokens.

    script   Every new token contains a letter of a script that is in the target text and not in
             the source text. By construction no text without such a letter changes.
    unseen   No pair is merged that is adjacent in a word of the source text. That text does not
             change; other source text can, if it contains a merged pair.

A token of byte-level BPE can begin or end inside a character. Bytes before its first whole
character do not tell the script (other scripts have them too); bytes after its last one count if
every character that begins with them is of such a script.
"""

import codecs
import sys
import unicodedata
from collections import Counter
from functools import lru_cache
from itertools import pairwise

from neutral_residues.config.choices import Keep
from neutral_residues.errors import UserError
from neutral_residues.vocabulary.learn import MayMerge
from neutral_residues.vocabulary.spelling import Spelling
from neutral_residues.vocabulary.words import WordCounts

SHARE_OF_LETTERS = 0.01
"""A text has a script if this share of its letters is of it: English text contains a few Greek
letters (0.1 % of the letters of biomedical papers are Greek)."""

CONTINUATION = bytes(range(0x80, 0xC0))
"""Bytes that continue a character in UTF-8."""


def may_merge(
    keep: Keep, *, target: WordCounts, source: WordCounts, spelling: Spelling
) -> MayMerge:
    """The function that says whether a pair may be merged, for these texts; a UserError if
    `script` allows no merge."""
    if keep == "unseen":
        return unseen(source)
    of_target, of_source = scripts_of(target, spelling), scripts_of(source, spelling)
    if new := of_target - of_source:
        return in_scripts(new, spelling)
    raise UserError(
        "vocabulary.keep: script needs a target in another script than the source's",
        got=f"{', '.join(sorted(of_target)) or 'no letters'}, which the source has too",
        do="set keep: unseen",
    )


def script_of(char: str) -> str:
    """The script of a character: the first word of its name in Unicode (LATIN, CYRILLIC, CJK)."""
    return unicodedata.name(char, "").partition(" ")[0]


def scripts_of(words: WordCounts, spelling: Spelling) -> frozenset[str]:
    """The scripts of a text, without those below `SHARE_OF_LETTERS`."""
    letters: Counter[str] = Counter()
    for word, count in words.counts.items():
        for char in spelling.text_of_word(word):
            letters[char] += count
    scripts: Counter[str] = Counter()
    for char, count in letters.items():
        scripts[script_of(char)] += count if char.isalpha() else 0
    least = SHARE_OF_LETTERS * scripts.total()
    return frozenset(script for script, count in scripts.items() if count > least)


def in_scripts(scripts: frozenset[str], spelling: Spelling) -> MayMerge:
    """Allow tokens that occur only in text with a character of these scripts."""
    return lambda left, right, token: only_with(scripts, spelling.bytes_of(token))


def unseen(source: WordCounts) -> MayMerge:
    """Allow pairs that are not adjacent in this text. As no merge then changes its tokens, it needs
    to be read only once."""
    seen = {pair for word in source.counts for pair in pairwise(word)}
    return lambda left, right, token: (left, right) not in seen


def only_with(scripts: frozenset[str], part: bytes) -> bool:
    """Whether every text whose UTF-8 bytes contain `part` has a character of these scripts."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    text = decoder.decode(part.lstrip(CONTINUATION))
    beginning = decoder.getstate()[0]
    return any(script_of(char) in scripts for char in text) or (
        beginning != b"" and all(script_of(char) in scripts for char in _beginning_with(beginning))
    )


@lru_cache
def _beginning_with(part: bytes) -> tuple[str, ...]:
    """The characters whose UTF-8 bytes begin with `part`, which is not empty."""
    num_bytes = 2 if part[0] < 0xE0 else 3 if part[0] < 0xF0 else 4
    first = part[0] & 0xFF >> (num_bytes + 1)
    for byte in part[1:]:
        first = first << 6 | byte & 0x3F
    num_free = 64 ** (num_bytes - len(part))
    chars = map(chr, range(first * num_free, min((first + 1) * num_free, sys.maxunicode + 1)))
    return tuple(char for char in chars if char.encode(errors="ignore").startswith(part))
