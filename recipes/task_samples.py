"""Makes the samples of minimal pairs in the package from the full files. The result is
reproducible, byte for byte.

    python recipes/task_samples.py FOLDER_WITH_JSONL_GZ

From each file, the same number of pairs of each construction (`uid`) is drawn, with a fixed seed.
Licences: see LICENSE.md in the output folder.
"""

import gzip
import json
import random
import sys
from pathlib import Path

TASK_DATA = (
    Path(__file__).parent.parent / "src" / "neutral_residues" / "evaluation" / "tasks" / "data"
)
PAIRS_OF_EACH = {"blimp.en": 10, "clams.en": 10, "clams.fr": 40, "clams.de": 40}


def sample(file: Path, pairs_of_each: int) -> list[dict[str, str]]:
    """At most `pairs_of_each` pairs of each construction, in alphabetical order."""
    by_uid: dict[str, list[dict[str, str]]] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            pair = json.loads(line)
            by_uid.setdefault(pair["uid"], []).append(pair)
    return [
        pair
        for uid, pairs in sorted(by_uid.items())
        for pair in random.Random(f"0/{uid}").sample(pairs, min(pairs_of_each, len(pairs)))
    ]


def main(folder: Path) -> None:
    TASK_DATA.mkdir(exist_ok=True)
    for name, pairs_of_each in PAIRS_OF_EACH.items():
        pairs = sample(folder / f"{name}.jsonl.gz", pairs_of_each)
        text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        # Without a time stamp, so that the file is reproducible.
        packed = gzip.compress(text.encode(), compresslevel=9, mtime=0)
        (TASK_DATA / f"{name}.jsonl.gz").write_bytes(packed)
        print(f"{name}: {len(pairs)} pairs, {len(packed):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
