"""Thresholds on the gates of a finished extension, ours and not the paper's: how calibration closes
gates without training (`neutral calibrate`).

    cut     g = z where z > 0 and m > t, else 0      an open gate keeps its size
    shift   g = relu(z - t) where m > t, else 0      an open gate is lowered by t

z: the gate's logit, as it was trained; t: its threshold, 0 or more, and with t = 0 both are the
trained gate; m = z, or, for a gate that reads tokens, the mean of its gates relu(z) over the last
tokens of the text. A trained gate is about 1 wherever it is open, on a foreign word in source text
as well as on target text; the difference is how long it stays open (LAB.md, "a promise with a
number"). Tokens on which thresholds close all gates are skipped in inference, as those are on which
the trained gates are closed.

Thresholds are part of the extension: PEFT saves them in its configuration and loads them with the
weights, from a folder or the Hub. They are valid only for the weights they were found with: they
hold a digest of these, and other weights are refused.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor

from neutral_residues.config.choices import ThresholdForm
from neutral_residues.errors import UserError

CALIBRATE_AGAIN = (
    "set thresholds to null in its adapter_config.json, and run neutral calibrate again"
)


class Threshold(NamedTuple):
    """The threshold of one gate."""

    value: float  # t
    form: ThresholdForm
    over: int = 1  # number of tokens of the mean m

    def applied_to(self, logits: Tensor, mean_gate: Tensor | None = None) -> Tensor:
        """Logits after the threshold: the gate is their relu, so 0 or less is closed. NaN stays
        NaN. `mean_gate` is m if that is not z."""
        m = logits if mean_gate is None else mean_gate
        is_open = logits - self.value if self.form == "shift" else logits
        return torch.where(m <= self.value, torch.minimum(logits, m - self.value), is_open)


@dataclass(frozen=True)
class Thresholds:
    """The thresholds of all gates of one extension; a UserError for invalid ones."""

    form: ThresholdForm
    values: Mapping[str, float]
    """Full name of the wrapped module in the backbone (a block, the output head or the embeddings)
    -> t of its gate."""
    weights: str
    """Digest of the extension's weights, see `weights_digest`."""
    over: int = 1
    """Number of tokens of the mean m; 1 for gates in the layers."""
    promise: str = ""
    """The promise of the calibration, in one sentence."""
    version: Literal[1] = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if self.version != 1:
            do = "load it with the neutral-residues that calibrated it"
            raise UserError("thresholds: version", got=self.version, allowed="1", do=do)
        if self.form not in get_args(ThresholdForm):
            raise UserError("thresholds: form", got=self.form, allowed="cut, shift")
        if type(self.over) is not int or self.over < 1:
            allowed = "a whole number, 1 or more"
            raise UserError("thresholds: over", got=self.over, allowed=allowed)
        for name, value in self.values.items():
            is_number = type(value) in (int, float) and 0 <= value < math.inf
            if not is_number:
                raise UserError(f"threshold of {name}", got=value, allowed="a number, 0 or more")

    @classmethod
    def of(cls, saved: Any) -> Self:
        """The thresholds in the dictionary `saved` of the PEFT configuration."""
        try:
            return cls(**saved)
        except (TypeError, AttributeError) as error:
            do = "calibrate the extension again, or set thresholds to null in adapter_config.json"
            raise UserError("the thresholds of this extension cannot be read", do=do) from error

    def to_dict(self) -> dict[str, Any]:
        """The dictionary for the PEFT configuration."""
        return asdict(self) | {"values": dict(self.values)}

    def at(self, name: str) -> Threshold:
        """The threshold of the gate with this name."""
        return Threshold(self.values[name], self.form, self.over)

    def check(self, *, gates: Iterable[str]) -> None:
        """Raise a UserError unless they are for exactly these gates."""
        different = sorted(set(gates) ^ set(self.values))
        if different:
            what = "these thresholds were made for another extension: gates"
            raise UserError(what, got=", ".join(different), do=CALIBRATE_AGAIN)

    def check_weights(self, tensors: Iterable[Tensor]) -> None:
        """Raise a UserError unless these are the weights of the extension."""
        if weights_digest(tensors) != self.weights:
            what = "these thresholds were made for other weights: the extension was trained further"
            raise UserError(f"{what}, or they come from another one", do=CALIBRATE_AGAIN)


def weights_digest(tensors: Iterable[Tensor]) -> str:
    """Digest of tensors: does not depend on their order, and is the same for 16-bit values stored
    in 32 bits."""
    hashes = []
    for tensor in tensors:
        value = tensor.detach().to("cpu", torch.float32).contiguous()
        digest = hashlib.sha256(str(tuple(value.shape)).encode())
        digest.update(value.numpy().tobytes())
        hashes.append(digest.hexdigest())
    return hashlib.sha256(" ".join(sorted(hashes)).encode()).hexdigest()
