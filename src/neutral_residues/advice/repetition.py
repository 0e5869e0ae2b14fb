"""How much of a corpus is there twice: documents, near copies of documents, and lines that stand
everywhere.

    duplicates         documents whose text, blanks evened out, stands in an earlier one
    near duplicates    documents of which half of all n-grams stand in one or another earlier document (13 words, as in
                       Brown et al. 2020, arXiv 2005.14165; 40 signs where blanks do not separate words)
    boilerplate        lines of at least 20 signs that stand in three documents or more: bytes beyond the first time

Where we choose: n-grams are compared by 64-bit hashes of their units, so none is missed and hardly
any taken for another. Documents are counted in the first category that fits. No torch.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORDS_PER_GRAM, SIGNS_PER_GRAM = 13, 40
NEAR_SHARE = 0.5
LINE_SIGNS, LINE_DOCUMENTS, NUM_LINES = 20, 3, 3
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with no pattern (2^64 over the golden ratio), for a polynomial hash."""
BLANKS_PER_SIGN = 1 / 15
"""At least so many blanks where they separate words: Finnish has one in nine signs, Thai and
Chinese far fewer."""


@dataclass(frozen=True)
class CorpusCheck:
    """Shares of the documents (of the bytes, for boilerplate) that say nothing new.

    Attributes:
        most_repeated: the most repeated lines, and in how many documents each stands.
    """

    num_documents: int
    num_bytes: int
    duplicate_share: float
    near_duplicate_share: float
    boilerplate_share: float
    most_repeated: tuple[tuple[str, int], ...]


def separates_words(texts: Sequence[str]) -> bool:
    """Whether blanks separate the words of these texts."""
    signs = sum(map(len, texts))
    return sum(len(text.split()) for text in texts) >= signs * BLANKS_PER_SIGN


def check_corpus(texts: Sequence[str]) -> CorpusCheck:
    """Look for repetition in documents, in their order."""
    num_documents, num_bytes = len(texts), sum(len(text.encode()) for text in texts)
    is_copy_D = _copies(texts)
    is_near_D = _near_copies(texts) & ~is_copy_D
    lines = _lines(texts)
    repeated = {line: n for line, n in lines.items() if n >= LINE_DOCUMENTS}
    repeated_bytes = sum((n - 1) * len(line.encode()) for line, n in repeated.items())
    return CorpusCheck(
        num_documents,
        num_bytes,
        float(is_copy_D.mean()) if num_documents else 0.0,
        float(is_near_D.mean()) if num_documents else 0.0,
        repeated_bytes / max(1, num_bytes),
        tuple(Counter(repeated).most_common(NUM_LINES)),
    )


def _copies(texts: Sequence[str]) -> NDArray[np.bool_]:
    seen: set[bytes] = set()
    found = np.zeros(len(texts), dtype=np.bool_)
    for place, text in enumerate(texts):
        digest = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        found[place] = digest in seen
        seen.add(digest)
    return found


def _near_copies(texts: Sequence[str]) -> NDArray[np.bool_]:
    words = separates_words(texts)
    grams = [_grams(text, words) for text in texts]
    sizes = np.array([len(g) for g in grams], dtype=np.int64)
    if not sizes.sum():
        return np.zeros(len(texts), dtype=np.bool_)
    document_N = np.repeat(np.arange(len(texts)), sizes)
    _, first, inverse = np.unique(np.concatenate(grams), return_index=True, return_inverse=True)
    is_old_N = document_N[first][inverse] < document_N
    old_D = np.bincount(document_N, weights=is_old_N, minlength=len(texts))
    return (sizes > 0) & (old_D >= NEAR_SHARE * sizes)


def _grams(text: str, words: bool) -> NDArray[np.uint64]:
    """Hash of each n-gram of a text; of a shorter text none."""
    if words:
        units = np.array([zlib.crc32(word.encode()) for word in text.split()], dtype=np.uint64)
        length = WORDS_PER_GRAM
    else:
        units = np.frombuffer("".join(text.split()).encode("utf-32-le"), dtype=np.uint32).astype(
            np.uint64
        )
        length = SIGNS_PER_GRAM
    number = max(0, len(units) - length + 1)
    hashes = np.zeros(number, dtype=np.uint64)
    for offset in range(length):
        hashes = (hashes ^ units[offset : offset + number]) * FACTOR
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _lines(texts: Sequence[str]) -> Counter[str]:
    """Line -> number of documents that it stands in."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update({line for raw in text.splitlines() if len(line := raw.strip()) >= LINE_SIGNS})
    return found
