"""Makes the texts of the demo, which are part of the package, from a folder of longer texts. The
result is reproducible, byte for byte.

    python recipes/demo_texts.py FOLDER_WITH_JSONL_GZ

All texts are free: novels in the public domain (ELTeC's editions without their markup), sentences
of Mozilla Common Voice (CC0) and Darwin's *Origin of Species* (public domain). Licences: see
LICENSE.md in the output folder.
"""

import gzip
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

DEMO_DATA = Path(__file__).parent.parent / "src" / "neutral_residues" / "demo" / "data"


def documents(
    file: Path, keep: Callable[[str], bool] = lambda source: True
) -> Iterator[dict[str, str]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            if keep(document["source"]):
                yield document


def write(name: str, chosen: Iterator[dict[str, str]], max_bytes: int) -> None:
    """Write the first documents, up to `max_bytes` bytes of text, as compressed JSON lines."""
    lines, num_bytes = [], 0
    for document in chosen:
        num_bytes += len(document["text"].encode())
        if num_bytes > max_bytes:
            break
        lines.append(json.dumps(document, ensure_ascii=False))
    # Without a time stamp, so that the file is reproducible.
    packed = gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=9, mtime=0)
    (DEMO_DATA / name).write_bytes(packed)
    print(f"{name}: {len(lines)} documents, {len(packed):,} bytes")


def main(folder: Path) -> None:
    DEMO_DATA.mkdir(exist_ok=True)
    sizes = {"train": {"en": 400_000, "fr": 1_000_000}, "valid": {}, "test": {}}
    for split, max_bytes in sizes.items():
        for language in ("en", "fr"):
            name = f"{language}.{split}.jsonl.gz"
            write(name, documents(folder / name), max_bytes.get(language, 40_000))
    darwin = documents(
        folder / "en-nonfiction.train.jsonl.gz", lambda source: source == "darwin-origin"
    )
    write("en-science.test.jsonl.gz", darwin, 40_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
