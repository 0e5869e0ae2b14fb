"""Gates over text: for each token the gate of every layer, as small steps of colour; exactly 0 is a
step of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

from neutral_residues.report.aggregate import Section
from neutral_residues.report.formatting import number, row_name
from neutral_residues.results.record import GateText

STEPS = 8
"""Steps of colour above 0."""


@dataclass(frozen=True)
class HeatToken:
    """One token.

    Attributes:
        text: as it is shown; line breaks and control characters are visible signs.
        levels: (L) 0 where the gate is exactly 0, else 1 to STEPS by its size.
        title: layer and gate, for the pointer.
        breaks: whether a new line starts after it.
    """

    text: str
    levels: tuple[int, ...]
    title: str
    breaks: bool


@dataclass(frozen=True)
class HeatText:
    """One text under one point.

    Attributes:
        owner: the point whose first seed it is.
        curve: name of its curve.
        layers: (L) numbers of the layers, from top to bottom.
        largest: the gate that has the darkest step.
        shut: share of all gates that are exactly 0.
    """

    owner: str
    curve: str
    name: str
    kind: str
    tokens: tuple[HeatToken, ...]
    layers: tuple[int, ...]
    largest: float
    shut: float


def heat_texts(section: Section) -> list[HeatText]:
    """All texts with gates of the first seed of each row, text by text, so that runs stand side by
    side."""
    found = [
        _heat(row_name(point, section), point.name, text, max(map(_largest, point.first.gates)))
        for point in section.rows
        for text in point.first.gates
    ]
    order = list(dict.fromkeys(text.name for text in found))
    return sorted(found, key=lambda text: order.index(text.name))


def level(gate: float, largest: float) -> int:
    """0 for exactly 0, else the step of colour."""
    if gate == 0:
        return 0
    return min(STEPS, 1 + int(STEPS * max(0.0, abs(gate)) / largest)) if largest > 0 else 1


def visible(text: str) -> str:
    """A token as people can see it: signs for line breaks, tabs and what cannot be printed."""
    signs = {"\n": "↵", "\r": "↵", "\t": "⇥"}
    return (
        "".join(
            signs.get(c) or (" " if c.isspace() else c if c.isprintable() else "�") for c in text
        )
        or "∅"
    )


def _heat(owner: str, curve: str, text: GateText, largest: float) -> HeatText:
    columns: Sequence[tuple[float, ...]] = list(zip(*text.gates, strict=True)) or [()] * len(
        text.tokens
    )
    tokens = [
        HeatToken(
            text=visible(token),
            levels=tuple(level(gate, largest) for gate in gates),
            title="\n".join(
                f"layer {n}: {_gate(gate)}" for n, gate in zip(text.layers, gates, strict=True)
            ),
            breaks="\n" in token,
        )
        for token, gates in zip(text.tokens, columns, strict=True)
    ]
    flat = [gate for row in text.gates for gate in row]
    shut = sum(gate == 0 for gate in flat) / len(flat) if flat else 0.0
    return HeatText(
        owner, curve, text.name, text.kind, tuple(tokens), tuple(text.layers), largest, shut
    )


def _gate(gate: float) -> str:
    return "0, shut" if gate == 0 else number(gate, 3)


def _largest(text: GateText) -> float:
    return max((abs(gate) for row in text.gates for gate in row), default=0.0)
