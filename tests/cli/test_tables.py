"""Both sides of a record in a table."""

import io
import math
from pathlib import Path

import pytest
from rich.console import Console

from neutral_residues.cli.tables import (
    beginnings_table,
    print_few_tokens,
    print_sets,
    print_summary,
    sets_table,
    tasks_table,
)
from neutral_residues.results.record import Record, TaskScore
from neutral_residues.results.set_result import Breakdown, SetResult, TokenChange
from neutral_residues.results.store import provenance
from synthetic import make_record


def printed(name: str, result: SetResult, *, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
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


def test_perplexity_per_token_does_not_compare_where_tokens_differ() -> None:
    text = printed("uk", RESULT.model_copy(update={"backbone_tokens": 16}))
    assert "16 -> 4" in text
    assert "16.00 -> 8.00" not in text


def test_what_to_type_after_a_run(tmp_path: Path) -> None:
    def printed(record: Record) -> str:
        console = Console(file=io.StringIO(), width=40)
        print_summary(record, tmp_path / "run", console=console)
        return console.file.getvalue()  # type: ignore[attr-defined]

    record = make_record()
    reads = {"residues": {"gate_reads": "tokens"}}
    tokens = record.model_copy(update={"config": record.config | reads})
    shares = [it.neutral_share for it in record.sets.values() if it.role == "source"]
    share = 100 * (1 - min(share or 0.0 for share in shares))
    assert f"report:    neutral report {tmp_path / 'run'}\n" in printed(tokens)
    assert f"open on {share:.2g} % of source tokens; fewer: neutral calibrate" in printed(tokens)
    # Gates in the layers lose half of what was learnt when they are calibrated.
    assert "calibrate" not in printed(record)
    never_closed = {
        name: it.model_copy(update={"num_neutral_tokens": 0}) for name, it in tokens.sets.items()
    }
    assert "calibrate" not in printed(tokens.model_copy(update={"sets": never_closed}))


def rows_of(record: Record) -> list[list[str]]:
    """Cells of all tables, line by line."""
    console = Console(file=io.StringIO(), width=160)
    print_sets(record, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines
    ]


def test_gates_on_the_wrong_side_layer_by_layer() -> None:
    rows = rows_of(make_record())
    assert ["layer", "en, open", "wiki, open", "fr, closed"] in rows
    # Of synthetic sets 94 and 89 % of the source gates are closed in layer 1, 9 % of the target's.
    assert ["1", "6.0", "11.0", "9.0"] in rows
    assert ["5", "10.0", "15.0", "5.0"] in rows


def test_text_that_switches_language() -> None:
    rows = rows_of(make_record())
    assert ["en after fr", "1.2000", "1.2240", "+2.00 %", "1.0909", "1.1018", "+1.00 %"] in rows
    assert ["fr after en", "4.4000", "2.2000", "-50.00 %", "4.0000", "3.0000", "-25.00 %"] in rows
    assert ["tokens", "1", "2-3", "4-7", "8-15", "16-31", "32+", "from 8 on"] in rows
    assert ["en after fr", "20", "40", "60", "80", "90", "95", "88"] in rows


def test_beginnings_of_texts() -> None:
    record = make_record()
    rows = rows_of(record)
    assert ["fr", "target", "0.7213", "0.5771", "-20.00 %", "4.77 -> 3.49", "-", "0.0100"] in rows
    table = beginnings_table(record)
    assert table is not None
    assert "the first 64 tokens of each text" in str(table.title)
    assert beginnings_table(make_record(beginnings={})) is None


def test_a_method_without_gates_has_no_table_of_gates() -> None:
    firsts = [row[0] for row in rows_of(make_record("lora"))]
    assert "layer" not in firsts
    assert firsts.count("en after fr") == 1


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
    text = printed("en", RESULT.model_copy(update={"breakdown": breakdown}), width=80)
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
            "metric": "word_perplexity",
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
    assert "lower is better for word_perplexity" in text
    assert "few-shot" not in text
