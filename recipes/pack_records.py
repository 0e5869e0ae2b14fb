"""Packs the records of a comparison into one file for the repository, and unpacks it for `neutral
report`.

python recipes/pack_records.py runs/compare/main docs/comparisons/main.jsonl.gz
python recipes/pack_records.py docs/comparisons/main.jsonl.gz runs/compare/main
"""

import gzip
import json
import sys
from pathlib import Path


def pack(comparison: Path, file: Path) -> int:
    """Every record and failure below `cells/`, a line each, with its path."""
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


def unpack(file: Path, comparison: Path) -> int:
    """A folder that `neutral report` takes."""
    comparison.mkdir(parents=True, exist_ok=True)
    (comparison / "compare.yaml").write_text(f"# unpacked from {file.name}\n", encoding="utf-8")
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    for line in lines:
        entry = json.loads(line)
        path = comparison / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            json.dumps(entry["content"], indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return len(lines)


if __name__ == "__main__":
    origin, goal = Path(sys.argv[1]), Path(sys.argv[2])
    count = unpack(origin, goal) if origin.is_file() else pack(origin, goal)
    print(f"{count} records -> {goal}")
