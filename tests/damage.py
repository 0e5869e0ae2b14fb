"""What can happen to a file: flipped bits, cut short, gone."""

import random
from collections.abc import Iterator
from pathlib import Path


def damages(file: Path, *, flips: int = 8) -> Iterator[str]:
    """Damages the file in one way after another, each time from what it was, and says how; it is
    whole again at the end."""
    whole = file.read_bytes()
    generator = random.Random(file.name)
    try:
        for position in generator.choices(range(len(whole)), k=flips):
            flipped = bytes([whole[position] ^ 1 << generator.randrange(8)])
            file.write_bytes(whole[:position] + flipped + whole[position + 1 :])
            yield f"{file.name}: a bit of byte {position} of {len(whole)}"
        for length in (0, len(whole) // 2, len(whole) - 2):
            file.write_bytes(whole[:length])
            yield f"{file.name}: cut to {length} of {len(whole)} bytes"
        file.unlink()
        yield f"{file.name}: gone"
    finally:
        file.write_bytes(whole)
