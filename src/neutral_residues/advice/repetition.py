"""Measures repetition in a corpus: copies of documents, and lines that occur in many documents.

A copy is a document whose text, apart from white space, equals that of an earlier one. Repeated
lines have at least `LINE_CHARS` characters and occur in `LINE_DOCUMENTS` documents or more; their
first occurrence is not counted.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from neutral_residues.advice.rules import CorpusFacts, RepeatedLine
from neutral_residues.config.data import Role

LINE_CHARS, LINE_DOCUMENTS, NUM_LINES = 20, 3, 3


def find_repetition(name: str, role: Role, texts: Sequence[str]) -> CorpusFacts:
    """The shares of copies and of repeated lines in `texts`, documents of the corpus `name`."""
    num_bytes = sum(len(text.encode()) for text in texts)
    digests = {hashlib.sha256(" ".join(text.split()).encode()).digest() for text in texts}
    lines: Counter[str] = Counter()
    for text in texts:
        stripped = (line.strip() for line in text.splitlines())
        lines.update({line for line in stripped if len(line) >= LINE_CHARS})
    repeated = Counter({line: n for line, n in lines.items() if n >= LINE_DOCUMENTS})
    repeated_bytes = sum((n - 1) * len(line.encode()) for line, n in repeated.items())
    most_repeated = repeated.most_common(NUM_LINES)
    return CorpusFacts(
        name=name,
        role=role,
        checked_documents=len(texts),
        checked_bytes=num_bytes,
        duplicate_share=(len(texts) - len(digests)) / max(1, len(texts)),
        repeated_line_share=repeated_bytes / max(1, num_bytes),
        repeated_lines=[
            RepeatedLine(text=line[:100], num_documents=n) for line, n in most_repeated
        ],
    )
