"""Compares an exported folder with the original model, in a process that cannot import this
package.

The measure is the largest absolute difference of a logit (or of a residue, if only the adapter was
exported), divided by the largest absolute logit (residue). Both compute in float32 on the CPU,
whatever type is stored, so only the order of additions differs: a few millionths. If a logit of a
new token is -inf in only one of the two, the difference is infinite.
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
"""Tolerance for weights that the format computes instead of copying, stored in 16 bits: they are
rounded once more than those of the original model."""

_CHILD = Path(__file__).parent / "verify_child.py"


@dataclass(frozen=True)
class Difference:
    """Difference between an export and the original model."""

    kind: Kind  # what was compared
    outputs: float  # largest absolute difference
    cache: float  # the same between generation with and without a cache; 0 for residues
    largest: float  # largest absolute number of the original model
    num_inactive: int  # layers (the head is one) not compared: their gates were always closed
    impossible: tuple[int, int] | None = None
    """Number of tokens after which new tokens are impossible, and number of all tokens; None if new
    tokens are always possible, or there are none."""

    @property
    def share(self) -> float:
        """The larger of the two differences, divided by the largest number."""
        return max(self.outputs, self.cache) / self.largest if self.largest else math.inf

    def check(self, *, rounded: bool) -> None:
        """Raise a UserError if the difference is above the tolerance.

        Args:
            rounded: weights were computed by the format and stored in 16 bits.
        """
        tolerance = ROUNDED_TOLERANCE if rounded else TOLERANCE
        if not self.share <= tolerance:
            raise UserError(
                "the export is not the live model",
                got=f"{self.kind} up to {self.outputs:.2g} off, {self.cache:.2g} with a cache",
                allowed=f"{tolerance * self.largest:.2g}",
                do="please report it, with the type of the backbone",
            )

    def describe(self) -> str:
        """The difference as a sentence, for the README and the command line."""
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
    """Load `folder` in a new process and compare its outputs with those of the original model.

    Args:
        kind: what to compare, logits or the adapter's residues.
        trust_remote_code: loading runs code from the folder.

    Raises:
        UserError: if the folder cannot be loaded there.
    """
    tensors = {"token_ids": reference.token_ids_BT, "logits": reference.logits_BTV}
    if kind == "residues":
        tensors |= reference.of_residues()
    asked = {"folder": str(folder.resolve()), "kind": kind, "trust_remote_code": trust_remote_code}
    with tempfile.TemporaryDirectory() as name:
        request = Path(name)
        # Copies: safetensors does not allow one tensor under two names.
        own = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
        save_file(own, request / "reference.safetensors")
        write_json(request / "request.json", asked)
        answer = _run_child(request)
    return Difference(
        kind, **answer, num_inactive=reference.num_inactive, impossible=reference.impossible
    )


def _run_child(request: Path) -> dict[str, Any]:
    # -P: nothing is imported from the child's folder. HF_MODULES_CACHE: the code of the export does
    # not go into Transformers' cache.
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
