"""How much of a corpus is repeated: copies of documents, and lines that occur in many of them.

Copies are documents whose text, white space aside, equals an earlier one's. Repeated lines have at
least `LINE_CHARS` characters and occur in `LINE_DOCUMENTS` documents or more; their bytes count
from the second time on.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

LINE_CHARS, LINE_DOCUMENTS, NUM_LINES = 20, 3, 3


@dataclass(frozen=True)
class Repetition:
    """What repeats in a corpus.

    Attributes:
        duplicate_share: share of documents that are copies of earlier ones.
        repeated_line_share: share of bytes in repeated lines.
        most_repeated: the most repeated lines, with the number of documents each occurs in.
    """

    num_documents: int
    num_bytes: int
    duplicate_share: float
    repeated_line_share: float
    most_repeated: tuple[tuple[str, int], ...]


def find_repetition(texts: Sequence[str]) -> Repetition:
    """Look for copies and repeated lines in documents."""
    num_bytes = sum(len(text.encode()) for text in texts)
    digests = {hashlib.sha256(" ".join(text.split()).encode()).digest() for text in texts}
    lines = _lines(texts)
    repeated = Counter({line: n for line, n in lines.items() if n >= LINE_DOCUMENTS})
    repeated_bytes = sum((n - 1) * len(line.encode()) for line, n in repeated.items())
    return Repetition(
        len(texts),
        num_bytes,
        (len(texts) - len(digests)) / max(1, len(texts)),
        repeated_bytes / max(1, num_bytes),
        tuple(repeated.most_common(NUM_LINES)),
    )


def _lines(texts: Sequence[str]) -> Counter[str]:
    """Line -> number of documents that it occurs in."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update({line for raw in text.splitlines() if len(line := raw.strip()) >= LINE_CHARS})
    return found
