"""The choices that shape an extension, declared once for run file and PEFT config. No torch."""

from typing import Literal, get_args

from neutral_residues.errors import UserError

Gate = Literal["relu", "elu", "sigmoid"]
BlockGate = Literal[Gate, "none"]
Init = Literal["usual", "paper"]
GateStart = Literal["open", "random", "half"]
GateReads = Literal["layer", "tokens"]
Placement = Literal["ffn", "attention"]
LocalLoss = Literal["l1", "cross_entropy"]
Keep = Literal["script", "unseen"]
ThresholdForm = Literal["cut", "shift"]

CHOICES: dict[str, tuple[str, ...]] = {
    "block_gate": get_args(BlockGate),
    "init": get_args(Init),
    "gate_start": get_args(GateStart),
    "gate_reads": get_args(GateReads),
    "placement": get_args(Placement),
    "local_loss": get_args(LocalLoss),
}
"""Name of a setting -> its values."""

NEEDS_SIGMOID = {
    ("gate_start", "half"): "another gate is 0 there and would never learn; choose open",
    ("local_loss", "cross_entropy"): "it trains the gate as a classifier; choose l1",
}
"""Choices that go with a sigmoid gate only, each with the reason and the way out."""


def check_choices(*, block_gate: str, **others: str) -> None:
    """Raise a UserError unless these choices, named as in `CHOICES`, exist and go together."""
    for name, value in {"block_gate": block_gate, **others}.items():
        if value not in CHOICES[name]:
            raise UserError(name, got=value, allowed=", ".join(CHOICES[name]))
    for name, value in others.items():
        if (name, value) in NEEDS_SIGMOID and block_gate != "sigmoid":
            what, do = f"{name}: {value} needs block_gate: sigmoid", NEEDS_SIGMOID[name, value]
            raise UserError(what, got=block_gate, do=do)
    start, reads = others.get("gate_start", "open"), others.get("gate_reads", "layer")
    if start != "open" and reads == "tokens" and block_gate != "none":
        what = "gate_start has no effect on a gate that reads tokens, which starts open"
        raise UserError(what, got=start, do="set gate_reads to layer, or gate_start to open")
