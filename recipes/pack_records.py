"""Packs the records of a comparison into one file for the repository, which `neutral report` reads.

python recipes/pack_records.py runs/compare/main docs/comparisons/main.jsonl.gz
"""

import gzip
import json
import sys
from pathlib import Path


def pack(comparison: Path, file: Path) -> int:
    """Write all records and failures in `cells/` to `file` as compressed JSON lines with their
    paths; returns their number."""
    found = sorted(
        [*comparison.glob("cells/**/record.json"), *comparison.glob("cells/**/failure.json")]
    )
    lines = [
        json.dumps(
            {
                "path": path.relative_to(comparison).as_posix(),
                "content": json.loads(path.read_text("utf-8")),
            }
        )
        for path in found
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=9, mtime=0))
    return len(lines)


if __name__ == "__main__":
    origin, goal = Path(sys.argv[1]), Path(sys.argv[2])
    print(f"{pack(origin, goal)} records -> {goal}")
