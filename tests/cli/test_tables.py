"""Both sides of a record in a table."""

import io
import math

import pytest
from rich.console import Console

from neutral_residues.cli.tables import print_few_tokens, sets_table, tasks_table
from neutral_residues.results.record import Record, TaskScore
from neutral_residues.results.set_result import Breakdown, SetResult, TokenChange
from neutral_residues.results.store import provenance


def printed(name: str, result: SetResult) -> str:
    console = Console(file=io.StringIO(), width=160)
    sets = {name: result}
    record = Record(kind="evaluate", method="neutral", sets=sets, provenance=provenance())
    console.print(sets_table(record))
    print_few_tokens(record, console=console)
    return console.file.getvalue()  # type: ignore[attr-defined]


BIT = math.log(2)
RESULT = SetResult(
    role="source",
    key="k",
    num_bytes=8,
    num_tokens=4,
    num_documents=1,
    backbone_nats=16 * BIT,
    extended_nats=12 * BIT,
    num_neutral_tokens=3,
)
"""2 bits per byte before, 1.5 after."""


def test_backbone_and_extended_model() -> None:
    text = printed("en", RESULT)
    for part in ("en", "source", "2.0000", "1.5000", "-25.00 %", "16.00 -> 8.00", "75.0 %"):
        assert part in text
    assert "KL" not in text
    text = printed("en", RESULT.model_copy(update={"kl_nats": 1.0}))
    assert "KL" in text
    assert "0.2500" in text


@pytest.mark.parametrize("is_concentrated", [False, True])
def test_a_change_that_few_tokens_carry_is_said(is_concentrated: bool) -> None:
    breakdown = Breakdown(
        classes=[],
        num_types=300,
        num_carriers=2,
        carriers_share=0.02,
        carriers=[TokenChange(text="\n", num_tokens=4, change=0.1)],
        is_concentrated=is_concentrated,
        documents=[],
    )
    text = " ".join(printed("en", RESULT.model_copy(update={"breakdown": breakdown})).split())
    warning = (
        "warning: en: half of all change is carried by 2 of 300 different tokens, 2.0 % of the text"
        " ('\\n')"
    )
    assert (warning in text) == is_concentrated


def test_tasks() -> None:
    score = TaskScore(
        name="clams-fr",
        metric="acc",
        unit="share",
        direction="higher",
        num_items=3280,
        backbone=0.5015,
        extended=0.5323,
        difference=0.0308,
        low=0.0164,
        high=0.0452,
        p_value=0.001,
        interval="t",
        num_fewshot=0,
        num_truncated=0,
        key="k",
    )
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
    assert "few-shot" not in text
