"""Gates over text: a step of colour for each token and layer; exactly 0 has its own."""

from dataclasses import dataclass

from neutral_residues.report.aggregate import Section
from neutral_residues.report.formatting import layer_name, number
from neutral_residues.results.record import GateText
from neutral_residues.results.set_result import LayerNumber

STEPS = 8
"""Steps of colour above 0."""
SHOWN = {"\n": "↵", "\r": "↵", "\t": "⇥"}


@dataclass(frozen=True)
class HeatToken:
    """One token."""

    text: str  # displayed text, see `visible`
    levels: tuple[int, ...]  # (L) 0 where the gate is exactly 0, else 1 to STEPS by its size
    title: str  # layers and gates, for the pointer
    breaks: bool  # whether a new line starts after it


@dataclass(frozen=True)
class HeatText:
    """One text under the first seed of one point."""

    row: str  # name of the point
    curve: str  # name of its curve
    name: str
    kind: str
    layers: tuple[LayerNumber, ...]  # (L) from top to bottom
    tokens: tuple[HeatToken, ...]
    largest: float  # size of a gate with the darkest step
    closed_share: float  # share of all gates that are exactly 0


def heat_texts(section: Section) -> list[HeatText]:
    """The gates of the first seed of each row, text by text, so that runs are next to each
    other."""
    found = []
    for point in section.rows:
        largest = max((abs(g) for text in point.first.gates for g in _all_gates(text)), default=0.0)
        row = section.row_name(point)
        found += [_heat_text(row, point.name, text, largest) for text in point.first.gates]
    order = list(dict.fromkeys(text.name for text in found))
    return sorted(found, key=lambda text: order.index(text.name))


def level(gate: float, largest: float) -> int:
    """The step of colour, 1 to STEPS; 0 if the gate is exactly 0."""
    if gate == 0:
        return 0
    return min(STEPS, 1 + int(STEPS * abs(gate) / largest))


def visible(text: str) -> str:
    """A token with symbols for line breaks, tabs and characters that cannot be printed."""
    shown = (SHOWN.get(c) or (" " if c.isspace() else c if c.isprintable() else "�") for c in text)
    return "".join(shown) or "∅"


def _heat_text(row: str, curve: str, text: GateText, largest: float) -> HeatText:
    gates = _all_gates(text)
    closed = sum(gate == 0 for gate in gates) / max(1, len(gates))
    tokens = []
    for index, token in enumerate(text.tokens):
        own = [gates_T[index] for gates_T in text.gates]
        by_layer = zip(text.layers, own, strict=True)
        lines = [
            f"{layer_name(n)}: {number(gate) if gate else '0, closed'}" for n, gate in by_layer
        ]
        levels = tuple(level(gate, largest) for gate in own)
        tokens.append(HeatToken(visible(token), levels, "\n".join(lines), breaks="\n" in token))
    layers = tuple(text.layers)
    return HeatText(row, curve, text.name, text.kind, layers, tuple(tokens), largest, closed)


def _all_gates(text: GateText) -> list[float]:
    return [gate for row in text.gates for gate in row]
