"""Sentences from numbers: every case says what is so."""

import pytest

from neutral_residues.report.verdict import few_tokens, moved, task_sentences, verdict
from neutral_residues.results.record import Record
from synthetic import comparison_records, make_record, make_section, score, two_seeds


def neutral(forgetting: float = 0.5, bits: float = 2.0, seed: int = 0) -> Record:
    return make_record(forgetting=forgetting, bits=bits, seed=seed)


def lora(forgetting: float, bits: float) -> Record:
    return make_record("lora", forgetting=forgetting, bits=bits)


@pytest.mark.parametrize(
    ("records", "parts"),
    [
        (
            [neutral()],
            [
                "neutral lowers bits per byte from 4.000 to 2.000 (−50.0 %, 1 seed), while those",
                "change by +0.50 % on average. Nothing else was measured here.",
            ],
        ),
        ([neutral(bits=4.5)], ["does not lower bits per byte from 4.000 to 4.500 (+12.5 %"]),
        ([neutral(1), neutral(3, seed=1)], ["+2.00 ± 1.41 %", "2 seeds"]),
        (
            [neutral(bits=2.5), lora(6, 2.0)],
            ["lora, forgets +4.50 % (on a straight line", "9.0 times as much"],
        ),
        ([neutral(-0.1), lora(4, 2.0)], ["At equal learning the next best, lora, forgets +4.00 %"]),
        (
            [neutral(), lora(4, 3.0)],
            ["No other method learns as much: lora comes nearest with 3.0"],
        ),
        ([neutral(5), lora(1, 2.0)], ["At equal learning lora forgets less: +1.00 %"]),
        ([lora(4, 2.0)], ["On fr, lora lowers", "On the Pareto front: lora."]),
    ],
)
def test_verdicts(records: list[Record], parts: list[str]) -> None:
    text = verdict(make_section(*records))
    for part in parts:
        assert part in text
    assert text.count(". ") == 1


def test_what_moved() -> None:
    section = make_section(make_record(forgetting=10.0, bits=3.5))
    # en rose by 5 % of 1.0 bits, three fifths of it on rare words, half on frequent ones.
    assert moved(section) == (
        "What moved the bits per byte (neutral): en +0.050 (rare words +0.030, frequent words"
        " +0.025); fr −0.500 (rare words −0.300, frequent words −0.250)."
    )
    assert few_tokens(section) == []
    (line,) = few_tokens(make_section(*comparison_records()))
    part = "lora on en: half of all change is carried by 2 of 300 different tokens, 2.0 % of the"
    assert part in line


def test_tasks_by_language() -> None:
    assert task_sentences(two_seeds()) == [
        (
            "neutral – English: blimp-en no change beyond noise (+0.1 ± 1.0); French: clams-fr"
            " better (+3.0 ± 2.0)."
        ),
        "lora – French: clams-fr worse (−2.0 ± 1.0).",
    ]
    many = [score(f"{name}_fr", 0.01, 0.02) for name in ("arc", "hellaswag", "m_mmlu", "belebele")]
    other = score("wikitext", -0.5, 1.0, unit="score", language=None, direction="lower")
    assert task_sentences(make_section(make_record(tasks=[*many, other]))) == [
        # Four half-widths of 2 add up to 4 as squares; divided by 4 that is 1, and 0 lies on its
        # edge.
        "neutral – French: mean of 4 tasks no change beyond noise (+1.0 ± 1.0); "
        "wikitext no change beyond noise (−0.5 ± 1.0)."
    ]
