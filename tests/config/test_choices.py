"""The choices that shape a residue, and which of them go together."""

import pytest

from neutral_residues.config.choices import CHOICES, check_choices
from neutral_residues.errors import UserError


@pytest.mark.parametrize("gate_start", CHOICES["gate_start"])
@pytest.mark.parametrize("local_loss", CHOICES["local_loss"])
def test_every_choice_goes_with_a_sigmoid_gate(gate_start: str, local_loss: str) -> None:
    check_choices(block_gate="sigmoid", gate_start=gate_start, local_loss=local_loss)


@pytest.mark.parametrize("gate", ["relu", "elu", "none"])
@pytest.mark.parametrize(
    "choice", [{"gate_start": "half"}, {"local_loss": "cross_entropy"}], ids=lambda c: next(iter(c))
)
def test_some_need_a_sigmoid_gate(gate: str, choice: dict[str, str]) -> None:
    with pytest.raises(UserError, match=f"needs block_gate: sigmoid; got {gate}"):
        check_choices(block_gate=gate, **choice)


def test_a_gate_that_reads_tokens_starts_open() -> None:
    check_choices(block_gate="sigmoid", gate_start="open", gate_reads="tokens")
    check_choices(block_gate="none", gate_start="random", gate_reads="tokens")
    line = "no effect on a gate that reads tokens.*got random; set gate_reads to layer"
    with pytest.raises(UserError, match=line):
        check_choices(block_gate="relu", gate_start="random", gate_reads="tokens")


@pytest.mark.parametrize("name", CHOICES)
def test_an_unknown_value_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}; got no; allowed: {CHOICES[name][0]}"):
        check_choices(**{"block_gate": "relu"} | {name: "no"})
