"""Both sides of a record in a table."""

import io

import pytest
from rich.console import Console

from neutral_residues.cli.tables import print_few_tokens, sides_table, tasks_table
from neutral_residues.evaluation.metrics import SetScore, metrics
from neutral_residues.results.record import Breakdown, Record, TaskScore, TokenChange
from neutral_residues.results.store import provenance
from neutral_residues.results.wording import change_in_words


def printed(*scores: SetScore) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(
        sides_table(
            Record(
                kind="evaluate", method="neutral", metrics=metrics(scores), provenance=provenance()
            )
        )
    )
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_both_sides_before_and_after() -> None:
    # 8 bytes, 4 tokens: 16 ln 2 nats are 2 bits per byte and a perplexity of 16.
    bit = 0.6931471805599453
    both = SetScore(
        "en",
        "source",
        4,
        8,
        1,
        extended_nats=12 * bit,
        backbone_nats=16 * bit,
        kl_nats=0.0,
        num_neutral_tokens=3,
    )
    text = printed(both)
    for part in ("en", "source", "2.0000", "1.5000", "-25.00 %", "16.00 -> 8.00", "75.0 %"):
        assert part in text


def test_without_a_backbone() -> None:
    alone = SetScore(
        "fr",
        "target",
        4,
        8,
        1,
        extended_nats=4.0,
        backbone_nats=None,
        kl_nats=None,
        num_neutral_tokens=None,
    )
    assert "fr" in printed(alone)


def test_a_change_that_few_tokens_carry_is_said() -> None:
    def said(is_concentrated: bool) -> str:
        breakdown = Breakdown(
            set="en", role="source", classes=[], num_types=300, num_carriers=2, carriers_share=0.02,
            carriers=[TokenChange(text="\n", num_tokens=4, change=0.1)], is_concentrated=is_concentrated, documents=[],
        )  # fmt: skip
        console = Console(file=io.StringIO(), width=300)
        record = Record(
            kind="evaluate", method="neutral", breakdowns=[breakdown], provenance=provenance()
        )
        print_few_tokens(record, console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    assert said(False) == ""
    assert (
        "warning: en: half of all change is carried by 2 of 300 different tokens, 2.0 % of the text"
        " ('\\n')" in said(True)
    )


def test_tasks() -> None:
    score = TaskScore(
        name="clams-fr", metric="acc", unit="share", direction="higher", num_items=3280, backbone=0.5015,
        extended=0.5323, difference=0.0308, low=0.0164, high=0.0452, p_value=0.001, interval="t", num_fewshot=0,
        num_truncated=0, key="k",
    )  # fmt: skip
    losses = score.model_copy(
        update={
            "name": "wikitext",
            "unit": "score",
            "direction": "lower",
            "difference": -0.2,
            "low": -0.3,
            "high": 0.1,
        }
    )
    console = Console(file=io.StringIO(), width=160)
    record = Record(
        kind="evaluate", method="neutral", tasks=[score, losses], provenance=provenance()
    )
    console.print(tasks_table(record))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("clams-fr", "3,280", "50.15", "53.23", "+3.1 ± 1.4", "better", "−0.2 ± 0.2", "no"):
        assert part in text
    assert "shots" not in text


@pytest.mark.parametrize(
    ("change", "direction", "words"),
    [
        ((-0.1, -0.5, 0.3), "higher", "no change beyond noise (−0.1 ± 0.4)"),
        ((-0.04, -0.5, 0.42), "higher", "no change beyond noise (0.0 ± 0.5)"),
        ((2.0, 1.0, 3.0), "higher", "better (+2.0 ± 1.0)"),
        ((2.0, 1.0, 3.0), "lower", "worse (+2.0 ± 1.0)"),
        ((-2.0, -3.0, -1.0), "lower", "better (−2.0 ± 1.0)"),
    ],
)
def test_changes_in_words(change: tuple[float, float, float], direction: str, words: str) -> None:
    assert change_in_words(*change, direction=direction) == words
