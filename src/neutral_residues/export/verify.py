"""An exported folder against the live model, in a fresh process that cannot import this package.

The measure is the largest absolute difference of a number (logits, or residues where the adapter
was exported alone), as a share of the largest such number. Both sides compute in float32 on the
CPU, whatever type is stored, so what is left is the order of sums: a few millionths.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save_file

from neutral_residues.errors import UserError
from neutral_residues.export.reference import Seen
from neutral_residues.files import write_json

Kind = Literal["model", "residues"]

TOLERANCE = 1e-4
# Where weights are computed, not copied, and then stored in 16 bits, they are rounded once more
# than the live model's.
ROUNDED_TOLERANCE = 3e-2

_CHILD = Path(__file__).parent / "verify_child.py"


@dataclass(frozen=True)
class Difference:
    """How far an export is from the live model.

    Attributes:
        logits: largest absolute difference of a logit (of a residue's number, where the adapter is
            alone).
        cache: largest absolute difference of a logit between generation with a cache and the same
            without.
        largest: the largest absolute number on the live side, to compare with.
        num_silent: layers whose gates stayed shut on all tokens, so that their residues were not
            compared.
    """

    logits: float
    cache: float
    largest: float
    num_silent: int

    @property
    def share(self) -> float:
        return max(self.logits, self.cache) / self.largest if self.largest else math.inf


def measure(folder: Path, seen: Seen, *, kind: Kind, trust_remote_code: bool) -> Difference:
    """Load `folder` in a fresh process and compare it with what was seen of the live model.

    Raises:
        UserError: if it cannot be loaded there.
    """
    with tempfile.TemporaryDirectory() as name:
        request = Path(name)
        tensors = {"token_ids": seen.token_ids_BT, "logits": seen.logits_BTV}
        if kind == "residues":
            tensors |= {f"inputs.{block}": tensor for block, tensor in seen.inputs.items()}
            tensors |= {f"residues.{block}": tensor for block, tensor in seen.residues.items()}
        save_file(
            {key: tensor.contiguous() for key, tensor in tensors.items()},
            request / "seen.safetensors",
        )
        write_json(
            request / "request.json",
            {"folder": str(folder.resolve()), "kind": kind, "trust_remote_code": trust_remote_code},
        )
        # -P: the child's own folder is no place to import from. The code cache of Transformers
        # stays as it was.
        environment = os.environ | {
            "HF_MODULES_CACHE": str(request / "modules"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD), str(request)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        answer_file = request / "answer.json"
        answer = (
            json.loads(answer_file.read_text(encoding="utf-8")) if answer_file.is_file() else {}
        )
    if done.returncode != 0 or "error" in answer:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(
            "the export cannot be loaded in a fresh process",
            got=str(answer.get("error", last))[:300],
        )
    return Difference(
        answer["difference"], answer["cache_difference"], answer["largest"], seen.num_silent
    )


def check(difference: Difference, *, rounded: bool) -> None:
    """Raise a UserError unless the export is the live model.

    Args:
        rounded: weights were computed and stored in 16 bits.
    """
    tolerance = ROUNDED_TOLERANCE if rounded else TOLERANCE
    if not difference.share <= tolerance:
        raise UserError(
            "the export is not the live model",
            got=(
                f"logits that differ by up to {difference.logits:.2g}, and by"
                f" {difference.cache:.2g} with a cache"
            ),
            allowed=f"{tolerance * difference.largest:.2g}",
            do="please report it, with the type of the backbone",
        )
