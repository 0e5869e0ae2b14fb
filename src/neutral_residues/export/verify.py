"""Compares an exported folder with the live model, in a process that cannot import this package.

Measured is the largest absolute difference of a number (a logit, or a residue where the adapter was
exported alone), as a share of the largest such number. Both models compute in float32 on the CPU,
whatever type is stored, so only the order of sums differs: a few millionths. A logit that is -inf
in one of them alone, of a new token that is impossible there, is infinitely far off.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file

from neutral_residues.errors import UserError, exit_reason
from neutral_residues.export.reference import ReferenceOutputs
from neutral_residues.files import write_json

Kind = Literal["logits", "residues"]

TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 3e-2
"""Where weights are computed, not copied, and then stored in 16 bits: they are rounded once more
than the live model's."""

_CHILD = Path(__file__).parent / "verify_child.py"


@dataclass(frozen=True)
class Difference:
    """How far an export is from the live model."""

    kind: Kind
    outputs: float  # largest absolute difference of a number
    cache: float  # of a logit, between generation with a cache and without; 0 for residues
    largest: float  # largest absolute number of the live model
    num_inactive: int  # layers and heads not compared: all gates were closed on all tokens
    impossible: tuple[int, int] | None = None
    """After how many tokens new ones are impossible, of how many; None where they never can be."""

    @property
    def share(self) -> float:
        """The larger difference by the largest number."""
        return max(self.outputs, self.cache) / self.largest if self.largest else math.inf

    def check(self, *, rounded: bool) -> None:
        """Raise a UserError unless the export is the live model; `rounded`: its weights were
        computed and stored in 16 bits."""
        tolerance = ROUNDED_TOLERANCE if rounded else TOLERANCE
        if not self.share <= tolerance:
            raise UserError(
                "the export is not the live model",
                got=f"{self.kind} up to {self.outputs:.2g} off, {self.cache:.2g} with a cache",
                allowed=f"{tolerance * self.largest:.2g}",
                do="please report it, with the type of the backbone",
            )

    def describe(self) -> str:
        """In words."""
        parts = [f"{self.kind} are equal, bit for bit"]
        if self.outputs:
            parts = [f"{self.kind} up to {self.largest:.3g} differ by at most {self.outputs:.1e}"]
        if self.kind == "logits":
            cache = f"differs by at most {self.cache:.1e}" if self.cache else "is equal too"
            parts.append(f"generation with a cache {cache}")
        if self.impossible is not None:
            number, of = self.impossible
            where = f"new tokens are impossible after the same {number} of {of} tokens"
            parts.append(where if number else "no gate was closed, so -inf is not compared")
        if (closed := self.num_inactive) > 0:
            where = f"in {closed} layers (the output head is one)"
            parts.append(f"{where} every gate was closed, so these are not compared")
        return "; ".join(parts)


def compare(
    folder: Path, reference: ReferenceOutputs, *, kind: Kind, trust_remote_code: bool
) -> Difference:
    """Load `folder` in a fresh process and compare it with the live model; a UserError if it cannot
    be loaded there."""
    tensors = {"token_ids": reference.token_ids_BT, "logits": reference.logits_BTV}
    if kind == "residues":
        tensors |= reference.of_residues()
    asked = {"folder": str(folder.resolve()), "kind": kind, "trust_remote_code": trust_remote_code}
    with tempfile.TemporaryDirectory() as name:
        request = Path(name)
        # One may be under two names, which this file format does not allow.
        own = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(own, request / "reference.safetensors")
        write_json(request / "request.json", asked)
        answer = _run_child(request)
    return Difference(
        kind, **answer, num_inactive=reference.num_inactive, impossible=reference.impossible
    )


def _run_child(request: Path) -> dict[str, Any]:
    # -P: nothing is imported from the child's own folder. Transformers' code cache stays as it was.
    modules = {"HF_MODULES_CACHE": str(request / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", str(_CHILD), str(request)],
        env=os.environ | modules,
        capture_output=True,
        text=True,
        check=False,
    )
    file = request / "answer.json"
    answer = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if done.returncode != 0 or "error" in answer:
        reason = str(answer.get("error") or exit_reason(done.returncode, done.stderr))
        raise UserError("the export cannot be loaded in a fresh process", got=reason[:300])
    return dict(answer)
