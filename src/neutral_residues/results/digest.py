"""Digests of saved tensors, so that a damaged file is noticed when it is loaded. No torch.

`digest.json` beside the safetensors files holds one hash for each tensor, of its type, shape and
bytes; how tensors are spread over files does not matter. A folder without one is not checked.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neutral_residues.errors import UserError
from neutral_residues.files import disk_errors, write_json

DIGEST = "digest.json"


def write_digest(folder: Path) -> None:
    """Write the digests of all tensors in `folder`."""
    write_json(folder / DIGEST, dict(_digests(folder)))


def check_digest(folder: Path) -> None:
    """Raise a UserError that names the first tensor in `folder` that is not as it was saved."""
    file = folder / DIGEST
    if not file.is_file():
        return
    do = f"save or fetch it again; if the weights were changed on purpose, delete {file}"
    damaged = f"the weights in {folder} are damaged"
    with disk_errors(file):
        try:
            saved = dict(json.loads(file.read_text(encoding="utf-8")))
            found = dict(_digests(folder))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(damaged, got="unreadable", do=do) from error
    different = [name for name in {**saved, **found} if saved.get(name) != found.get(name)]
    if different:
        got = f"{len(different)} tensors that differ from what was saved, first {different[0]}"
        raise UserError(damaged, got=got, do=do)


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        with file.open("rb") as handle:
            header_bytes = min(size, int.from_bytes(handle.read(8), "little"))
            header: dict[str, Any] = json.loads(handle.read(header_bytes))
            start = handle.tell()
            for name, tensor in header.items():
                if name == "__metadata__":
                    continue
                first, last = tensor["data_offsets"]
                handle.seek(start + first)
                digest = hashlib.sha256(f"{tensor['dtype']} {tensor['shape']}".encode())
                digest.update(handle.read(last - first))
                yield name, digest.hexdigest()
