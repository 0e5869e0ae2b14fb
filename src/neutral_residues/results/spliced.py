"""Results on text that alternates between source and target language: sums, and their ratios. No
torch."""

from typing import Self

from pydantic import Field, computed_field, model_validator

from neutral_residues.results.base import Part, PartWithRatios
from neutral_residues.results.set_result import bits_per_byte, rise_percent

LATER = 8
"""Number of tokens after a switch from which `AfterSwitch.closed_share_later` counts gates: they
should have recognised the language by then."""


class GatesSinceSwitch(PartWithRatios):
    """Gates at a range of distances, in tokens, from the last switch of language."""

    first: int = Field(ge=1)
    """Smallest distance; 1 is the first token of the new language."""
    last: int | None = Field(default=None, ge=1)
    """Largest distance; null: up to the next switch."""
    num_gates: int = Field(ge=1)
    """Number of (token, layer) gates at these tokens."""
    num_closed: int = Field(ge=0)
    """How many of them are exactly 0."""

    @property
    def title(self) -> str:
        """The range of distances, for example "2-3" or "32+"."""
        if self.last is None:
            return f"{self.first}+"
        return str(self.first) if self.last == self.first else f"{self.first}-{self.last}"

    @computed_field
    @property
    def closed_share(self) -> float:
        """Share of these gates that are exactly 0."""
        return self.num_closed / self.num_gates


class AfterSwitch(PartWithRatios):
    """Results on the tokens of one language after a switch to it, in spliced text. The first token
    of each segment is left out, because no model can predict a switch. Tokens are counted in the
    backbone's tokenizer, also if the extended model reads the text in new tokens. Bytes are
    estimated from the mean number of bytes per token of the set."""

    name: str
    """Evaluation set that the tokens are from."""
    num_tokens: int = Field(ge=1)
    """Number of tokens."""
    num_bytes: float = Field(gt=0)
    """Number of tokens times the mean bytes per token of the set."""
    backbone_nats: float
    """Negative log-likelihood under the backbone in the spliced text, in nats."""
    extended_nats: float
    """Negative log-likelihood under the extended model in the spliced text, in nats."""
    backbone_alone_nats: float
    """Nats of the same tokens under the backbone, in their own text without the other language."""
    extended_alone_nats: float
    """Nats of the same tokens under the extended model, in their own text."""
    gates: list[GatesSinceSwitch] = Field(default=[])
    """Gates by distance from the switch; empty without block gates."""

    @property
    def closed_share_later(self) -> float | None:
        """Share of the gates that are exactly 0, `LATER` or more tokens after a switch; None
        without gates."""
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
        """Rise of the loss on the spliced text, extended minus backbone, in per cent of the
        backbone's."""
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
        """The same rise in per cent on the same tokens in their own text."""
        return rise_percent(self.backbone_alone_nats, self.extended_alone_nats)


class Spliced(Part):
    """Results on text that alternates between a source and a target set; see `data/splicing.py`."""

    num_windows: int = Field(ge=1)
    """Number of windows, evenly spaced over both sets; every other one begins with target text."""
    context_tokens: int = Field(ge=1)
    """Tokens of a window."""
    source: AfterSwitch
    """Results on source text after a switch from target text."""
    target: AfterSwitch
    """Results on target text after a switch from source text."""

    @model_validator(mode="after")
    def _two_texts(self) -> Self:
        if self.source.name == self.target.name:
            raise ValueError("source and target are one text")
        return self

    @property
    def directions(self) -> dict[str, AfterSwitch]:
        """Name of the direction, such as "en after fr" -> its results."""
        source, target = self.source.name, self.target.name
        return {f"{source} after {target}": self.source, f"{target} after {source}": self.target}
