"""What was measured on text that switches between source and target language: sums, and the ratios
that people read. No torch."""

from typing import Self

from pydantic import Field, computed_field, model_validator

from neutral_residues.results.base import Part, PartWithRatios
from neutral_residues.results.set_result import bits_per_byte, rise_percent

LATER = 8
"""Tokens after a switch, from which on a gate should know: `AfterSwitch.closed_share_later`."""


class GatesSinceSwitch(PartWithRatios):
    """Gates at the tokens that stand so far behind a switch."""

    first: int = Field(ge=1)
    """The nearest of these tokens; 1 is the first token of the language switched to."""
    last: int | None = Field(default=None, ge=1)
    """The farthest; null: the last before the next switch."""
    num_gates: int = Field(ge=1)
    """(token, layer) gates computed on reading these tokens."""
    num_closed: int = Field(ge=0)
    """Those that are exactly 0."""

    @property
    def title(self) -> str:
        """The tokens, for example "2-3" or "32+"."""
        if self.last is None:
            return f"{self.first}+"
        return str(self.first) if self.last == self.first else f"{self.first}-{self.last}"

    @computed_field
    @property
    def closed_share(self) -> float:
        """Share of these gates that are exactly 0."""
        return self.num_closed / self.num_gates


class AfterSwitch(PartWithRatios):
    """Tokens of one language after a switch to it, but the first of each segment: that a switch
    comes cannot be known. They are the backbone's, also where the extended model reads the text in
    new ones. Where bytes are needed, a token has as many as in the whole set."""

    name: str
    """The evaluation set that they are from."""
    num_tokens: int = Field(ge=1)
    """How many."""
    num_bytes: float = Field(gt=0)
    """Tokens times bytes per token of the set."""
    backbone_nats: float
    """Their nats under the backbone, in the spliced text."""
    extended_nats: float
    """Their nats under the extended model, in the spliced text."""
    backbone_alone_nats: float
    """Nats of the same tokens under the backbone where their own text stands alone."""
    extended_alone_nats: float
    """The same under the extended model."""
    gates: list[GatesSinceSwitch] = Field(default=[])
    """By distance from the switch; empty without block gates."""

    @property
    def closed_share_later(self) -> float | None:
        """Share of the gates that are exactly 0 from token `LATER` after the switch on; None
        without any."""
        later = [gates for gates in self.gates if gates.first >= LATER]
        num_gates = sum(gates.num_gates for gates in later)
        return sum(gates.num_closed for gates in later) / num_gates if num_gates else None

    @computed_field
    @property
    def backbone_bits_per_byte(self) -> float:
        return bits_per_byte(self.backbone_nats, self.num_bytes)

    @computed_field
    @property
    def extended_bits_per_byte(self) -> float:
        return bits_per_byte(self.extended_nats, self.num_bytes)

    @computed_field
    @property
    def rise_percent(self) -> float:
        """Extended over backbone on the spliced text, in per cent of the backbone."""
        return rise_percent(self.backbone_nats, self.extended_nats)

    @computed_field
    @property
    def backbone_alone_bits_per_byte(self) -> float:
        return bits_per_byte(self.backbone_alone_nats, self.num_bytes)

    @computed_field
    @property
    def extended_alone_bits_per_byte(self) -> float:
        return bits_per_byte(self.extended_alone_nats, self.num_bytes)

    @computed_field
    @property
    def alone_rise_percent(self) -> float:
        """Extended over backbone on the same tokens where their text stands alone."""
        return rise_percent(self.backbone_alone_nats, self.extended_alone_nats)


class Spliced(Part):
    """A source and a target set in turns, segment by segment; see `data/splicing.py`."""

    num_windows: int = Field(ge=1)
    """Windows measured, from all over both sets; every other one begins with target text."""
    context_tokens: int = Field(ge=1)
    """Tokens of a window."""
    source: AfterSwitch
    """Source text that follows target text."""
    target: AfterSwitch
    """Target text that follows source text."""

    @model_validator(mode="after")
    def _two_texts(self) -> Self:
        if self.source.name == self.target.name:
            raise ValueError("source and target are one text")
        return self

    @property
    def directions(self) -> dict[str, AfterSwitch]:
        """Both by name, such as "en after fr"."""
        source, target = self.source.name, self.target.name
        return {f"{source} after {target}": self.source, f"{target} after {source}": self.target}
