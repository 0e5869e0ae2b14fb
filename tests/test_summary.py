"""Both sides of a record in a table."""

import io

from rich.console import Console

from neutral_residues.record import Breakdown, Record, TokenChange
from neutral_residues.results import provenance
from neutral_residues.scores import SetScore, metrics
from neutral_residues.summary import print_few_tokens, sides_table


def printed(*scores: SetScore) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(
        sides_table(Record(kind="evaluate", method="neutral", metrics=metrics(scores), provenance=provenance()))
    )
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_both_sides_before_and_after() -> None:
    # 8 bytes, 4 tokens: 16 ln 2 nats are 2 bits per byte and a perplexity of 16.
    bit = 0.6931471805599453
    both = SetScore(
        "en", "source", 4, 8, 1, extended_nats=12 * bit, backbone_nats=16 * bit, kl_nats=0.0, num_neutral_tokens=3
    )
    text = printed(both)
    for part in ("en", "source", "2.0000", "1.5000", "-25.00 %", "16.00 -> 8.00", "75.0 %"):
        assert part in text


def test_without_a_backbone() -> None:
    alone = SetScore(
        "fr", "target", 4, 8, 1, extended_nats=4.0, backbone_nats=None, kl_nats=None, num_neutral_tokens=None
    )
    assert "fr" in printed(alone)


def test_a_change_that_few_tokens_carry_is_said() -> None:
    def said(is_concentrated: bool) -> str:
        breakdown = Breakdown(
            set="en", role="source", classes=[], num_types=300, num_carriers=2, carriers_share=0.02,
            carriers=[TokenChange(text="\n", num_tokens=4, change=0.1)], is_concentrated=is_concentrated, documents=[],
        )  # fmt: skip
        console = Console(file=io.StringIO(), width=300)
        record = Record(kind="evaluate", method="neutral", breakdowns=[breakdown], provenance=provenance())
        print_few_tokens(record, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert said(False) == ""
    assert "warning: en: half of all change is carried by 2 of 300 different tokens, 2.0 % of the text ('\\n')" in said(
        True
    )
