"""Rules from numbers to sentences: each fires where it should and is silent where it should not."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from neutral_residues.advice.rules import (
    TUNED,
    CorpusFacts,
    DistanceFacts,
    RepeatedLine,
    TextFacts,
    continued,
    recommendations,
    warnings,
)
from neutral_residues.config.run import make_run
from neutral_residues.results.record import Record
from neutral_residues.results.store import validation_bits
from paths import COMPARISONS

PER_STEP = 1000


def config(**changes: Any) -> Any:
    corpora = [
        {"name": name, "role": role, "path": f"{name}.txt"}
        for name, role in (("fr", "target"), ("en", "source"))
    ]
    values = {"model": "x", "output": "y", "data": {"train": corpora}, "training": {"steps": 100}}
    return make_run(values | changes)


def text(name: str, role: str, use: str = "train", **changes: Any) -> TextFacts:
    values: dict[str, Any] = {
        "name": name, "role": role, "use": use, "num_documents": 10, "num_tokens": 1_000_000, "num_bytes": 4_000_000,
        "tokens_per_sign": 0.25, "tokens_per_word": 1.5, "bytes_per_sign": 1.0, "backbone_bits": 1.0,
    }  # fmt: skip
    return TextFacts(**values | changes)


def both(
    target: dict[str, Any] | None = None, source: dict[str, Any] | None = None
) -> list[TextFacts]:
    target = {"backbone_bits": 3.0} | (target or {})
    sides = (("fr", "target", target), ("en", "source", source or {}))
    return [
        text(name, role, use, **changes)
        for use in ("train", "evaluate")
        for name, role, changes in sides
    ]


def said(texts: list[TextFacts], corpora: Any = (), distances: Any = (), **changes: Any) -> str:
    return "\n".join(
        warnings(config(**changes), texts, corpora, distances, tokens_per_step=PER_STEP)
    )


def test_an_ordinary_run_is_not_warned_of() -> None:
    assert said(both()) == ""
    assert said(both({"tokens_per_word": 3.0})) == ""  # twice as many, not more
    assert said(both({"backbone_bits": 1.01})) == ""


def test_a_target_that_the_tokenizer_cuts_fine() -> None:
    assert "the target costs 10.00 tokens a word, the source 1.50: 6.7 times" in said(
        both({"tokens_per_word": 10.0})
    )
    by_sign = both({"tokens_per_word": None, "tokens_per_sign": 1.0})
    assert "the target costs 1.00 tokens a sign, the source 0.25: 4.0 times" in said(by_sign)


def test_a_target_that_the_backbone_knows() -> None:
    assert "already knows the target: 1.00 bits a sign" in said(both({"backbone_bits": 1.0}))
    # Two bytes a letter: half of the bits per byte are as many bits a letter.
    assert said(both({"backbone_bits": 0.9, "bytes_per_sign": 2.0})) == ""
    assert said(both({"backbone_bits": None})) == ""


@pytest.mark.parametrize("role", ["source", "target"])
def test_a_side_that_is_not_measured(role: str) -> None:
    left = [t for t in both() if not (t.use == "evaluate" and t.role == role)]
    assert f"no evaluation set has role: {role}" in said(left)


def test_nothing_is_replayed() -> None:
    left = [t for t in both() if not (t.use == "train" and t.role == "source")]
    assert said(left).startswith("no training corpus has role: source")


def test_replay_of_another_genre() -> None:
    near, far = (
        DistanceFacts(set="wiki", bits=bits, replay_bits=0.05, target_bits=0.5)
        for bits in (0.09, 0.2)
    )
    assert said(both(), distances=[near]) == ""
    assert "replay is far from wiki: 0.20 bits, and 0.05 from itself" in said(
        both(), distances=[far]
    )
    assert far.way_to_target == pytest.approx(1 / 3)


def test_repetition() -> None:
    values = {"duplicate_share": 0.04, "near_duplicate_share": 0.06, "boilerplate_share": 0.2}
    lines = [RepeatedLine(text="Share this page", num_documents=9)]
    corpus = CorpusFacts(
        name="web",
        role="target",
        checked_documents=9,
        checked_bytes=99,
        boilerplate=lines,
        **values,
    )
    assert said(both(), corpora=[corpus]).splitlines() == [
        "corpus web: 6 % of its documents are nearly copies of others",
        (
            'corpus web: 20 % of its text are lines that stand in many documents ("Share this page"'
            " in 9)"
        ),
    ]


def test_text_that_is_read_too_often() -> None:
    assert (
        said(both({"num_tokens": 22_500})) == ""
    )  # 90,000 of the 100,000 tokens are target: four times
    few = both({"num_tokens": 15_000})
    assert "reads its target text 6.0 times" in said(few)
    found = {
        r.setting: r
        for r in recommendations(config(), few, tokens_per_step=PER_STEP, hidden_size=192)
    }
    assert (found["training.steps"].value, found["training.steps"].now) == (66, 100)
    assert "reads its source text 5.0 times" in said(both(source={"num_tokens": 2_000}))


def test_recommendations_fit_the_method_and_the_width() -> None:
    def settings(hidden_size: int = 192, **changes: Any) -> dict[str, float]:
        run = config(**changes)
        found = recommendations(run, both(), tokens_per_step=PER_STEP, hidden_size=hidden_size)
        assert all(r.reason for r in found)
        return {r.setting: r.value for r in found}

    assert settings() == {
        "budget": 0.2, "data.source_share": 0.1, "training.learning_rate": 5e-3, "training.steps": 100,
    }  # fmt: skip
    assert settings(hidden_size=1920)["training.learning_rate"] == 5e-4
    assert "budget" not in settings(method="finetune")
    assert (
        settings(method="dora")["training.learning_rate"] == 3e-3
    )  # its recipe: nothing was tuned
    assert "training.learning_rate" not in settings(
        method="wise-ft", averaging={"finetuned": Path("x").name}
    )


def test_tuned_learning_rates_are_those_that_validation_chose() -> None:
    """From the records of the comparison that LAB.md reports, the first seed at every learning
    rate."""
    packed = COMPARISONS / "main.jsonl.gz"
    tried: dict[str, dict[float, float]] = {}
    for line in gzip.decompress(packed.read_bytes()).decode().splitlines():
        entry = json.loads(line)
        if "/french/" in entry["path"] and entry["path"].endswith("-s0/record.json"):
            record = Record.model_validate(entry["content"])
            if record.method in TUNED and (bits := validation_bits(record)) is not None:
                tried.setdefault(record.method, {})[record.config["training"]["learning_rate"]] = (
                    bits
                )
    for method, (rate, between) in TUNED.items():
        assert min(tried[method], key=tried[method].__getitem__) == rate
        assert between == f"{_short(min(tried[method]))} to {_short(max(tried[method]))}"


def _short(rate: float) -> str:
    digits, exponent = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def test_a_curve_is_continued_by_doublings() -> None:
    curve = [(0, 5.0), (10, 4.0), (20, 3.5)]
    assert continued(curve, steps=20) == 3.5
    assert continued(curve, steps=160) == pytest.approx(3.5 - 3 * 0.5)
    assert continued(curve, steps=321) is None  # too far
    assert continued([(0, 5.0), (10, 4.0), (20, 4.1)], steps=40) is None  # no gain
    assert continued([(0, 5.0), (20, 4.0)], steps=40) is None
