"""Allowed values of the settings that the run file and the PEFT config share. No torch."""

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
"""Name of a setting -> its allowed values."""

NEEDS_SIGMOID = {
    ("gate_start", "half"): "another gate is 0 there and would never learn; choose open",
    ("local_loss", "cross_entropy"): "it trains the gate as a classifier; choose l1",
}
"""(setting, value) pairs that need a sigmoid gate -> the reason and what to choose instead."""


def check_choices(*, block_gate: str, **others: str) -> None:
    """Raise a UserError unless the given settings (names as in `CHOICES`) have allowed values that
    can be combined."""
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
