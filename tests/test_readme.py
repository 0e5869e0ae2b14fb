"""What the README says is run, or held against the project."""

import contextlib
import io
import math
import re
import statistics
from statistics import fmean as mean

import pytest
import yaml

from families import FAMILIES
from neutral_residues.config.run import make_run
from neutral_residues.report.load import Found, collect
from neutral_residues.results.record import Record
from paths import DEMO_BACKBONE, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of that language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_the_python_example_prints_what_it_says() -> None:
    """On the backbone that ships, so with other numbers than SmolLM2's; its words are the same."""
    hub_name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    example, (expected,) = blocks("python")[0], blocks("text")
    assert hub_name in example
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example.replace(hub_name, str(DEMO_BACKBONE)), "README.md", "exec"), {})
    assert without_numbers(printed.getvalue()) == without_numbers(expected)


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*", "#", text)


def test_the_three_lines_define_a_trainer() -> None:
    from transformers import Trainer

    namespace: dict[str, type] = {}
    exec(compile(blocks("python")[1], "README.md", "exec"), namespace)
    assert issubclass(namespace["MyTrainer"], Trainer)


def test_the_run_file_is_valid() -> None:
    assert make_run(yaml.safe_load(blocks("yaml")[0])).budget == 0.20


def test_commands_exist() -> None:
    from neutral_residues.cli.app import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    named = re.findall(r"`neutral (\w+)", README)
    assert len(named) >= 5
    assert set(named) <= known
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\w+)", README, flags=re.MULTILINE)) <= targets


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_number_of_families_is_that_of_the_contract_test() -> None:
    assert re.findall(r"\[(\d+) families\]", README) == [str(len(FAMILIES))]


ROWS = {
    "full fine-tuning": "finetune/lr0.006-p0.1",
    "LoRA on the same budget": "lora/b0.2-lr0.006-p0.1",
    "gate-less adapter": "adapter/b0.2-lr0.01-p0.1",
    "fine-tuning with KL to the backbone": "finetune-kl/lr0.006-p0.1",
    "gate-less adapter with KL": "adapter-kl/b0.2-lr0.01-p0.1",
    "the paper's neutral residues": "neutral-paper/b0.2-lr0.005-p0.1",
    "neutral residues, trained with AdamW": "neutral-adamw/b0.2-lr0.01-p0.1",
    "**neutral residues**": "neutral/b0.2-lr0.01-p0.1",
}


def packed(name: str) -> list[Found]:
    """The records of a comparison that ships with the repository."""
    return list(collect([ROOT / "docs" / "comparisons" / f"{name}.jsonl.gz"]).found)


def table_row(title: str) -> list[str]:
    line = next(line for line in README.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip(" *") for cell in line.strip("|").split("|")[1:]]


@pytest.mark.parametrize("title", ROWS)
def test_the_results_are_those_of_the_records(title: str) -> None:
    runs = [
        found.record for found in packed("main") if f"cells/french/{ROWS[title]}-s" in found.origin
    ]
    assert len(runs) == 3
    for cell, name in zip(table_row(title), ("en", "en-pubmed", "en-wiki", "fr"), strict=False):
        before = statistics.fmean(run.sets[name].backbone_bits_per_byte for run in runs)
        after = statistics.fmean(run.sets[name].extended_bits_per_byte for run in runs)
        shown = [f"{after:.3f}", f"({100 * (after / before - 1):+.1f} %)"]
        assert cell == (shown[0] if name == "fr" else " ".join(shown))
        assert (
            table_row("backbone")[("en", "en-pubmed", "en-wiki", "fr").index(name)]
            == f"{before:.3f}"
        )


def test_the_claims_are_those_of_the_report() -> None:
    """Forgetting at equal learning, as the report works it out from the same records."""
    from neutral_residues.report.aggregate import sections
    from neutral_residues.report.pareto import compare_with_neutral

    (section,) = sections(packed("main"))
    comparison = compare_with_neutral(section)
    assert comparison is not None
    assert comparison.better_on_both_sides == ()
    assert comparison.reference.first.config["training"]["learning_rate"] == 1e-2
    forgets: dict[str, float] = {}
    for other in comparison.others:
        if other.lost is not None:
            label = other.name.split(" ")[0]
            forgets[label] = min(forgets.get(label, math.inf), other.lost)
    for title, name in ROWS.items():
        label = name.split("/")[0]
        expected = forgets.get(label)
        if label == "neutral":
            expected = comparison.reference.forgetting.mean
        shown = "learns less" if expected is None else f"{expected:+.1f} %"
        assert table_row(title)[-1] == shown


def test_what_is_said_of_the_recipes_rate_is_in_the_records() -> None:
    runs = [it.record.sets for it in packed("main") if "/neutral/b0.2-lr0.005-p0.1-s" in it.origin]
    assert len(runs) == 3
    reached = mean(sets["fr"].extended_bits_per_byte for sets in runs)
    novels, science, wiki = (
        mean(sets[name].rise_percent for sets in runs) for name in ("en", "en-pubmed", "en-wiki")
    )
    said = f"reach {reached:.3f} and forget {novels:.1f}, {science:.1f} and {wiki:.1f} %."
    assert said in " ".join(README.split())


SMOLLM2 = {
    "SmolLM2, full fine-tuning": "finetune/lr0.00033",
    "SmolLM2, fine-tuning with KL (one seed)": "finetune-kl/lr0.00033",
    "SmolLM2, averaged with fine-tuning, 0.6 (one seed)": "wise-ft/share0.6-lr0.00033",
    "SmolLM2, LoRA on the same budget": "lora/b0.2-lr0.002",
    "SmolLM2, gate-less adapter": "adapter/b0.2-lr0.0066",
    "**SmolLM2, neutral residues**": "neutral/b0.2-lr0.00167",
    "**SmolLM2, the same, calibrated (one seed)**": "neutral_calibrated/b0.2-lr0.00167",
}


def real_models(language: str, run: str) -> list[Record]:
    start = f"cells/smollm2-{language}/{run}"
    return [found.record for found in packed("smollm2") if start in found.origin]


@pytest.mark.parametrize("title", SMOLLM2)
def test_the_real_models_results_are_those_of_the_records(title: str) -> None:
    records = real_models("fr", SMOLLM2[title])
    assert len(records) == (1 if "one seed" in title else 3)
    assert {record.cost.tokens for record in records} == {256_000}
    assert all((record.promise is not None) == ("calibrated" in title) for record in records)
    cells, backbone = table_row(title), table_row("SmolLM2-135M-Instruct")
    for number, name in enumerate(("en", "en-pubmed", "en-wiki", "fr")):
        found = [record.sets[name] for record in records]
        assert {backbone[number]} == {f"{it.backbone_bits_per_byte:.3f}" for it in found}
        bits = f"{mean(it.extended_bits_per_byte for it in found):.3f}"
        change = f"({mean(it.rise_percent for it in found):+.1f} %)"
        assert cells[number] == (bits if name == "fr" else f"{bits} {change}")
    assert cells[4] == f"{kl_on_english(records):.3f}"
    samples = [sample for record in records for sample in record.chat]
    assert cells[5] == f"{sum(sample.is_same for sample in samples)} of {len(samples)}"


def kl_on_english(records: list[Record]) -> float:
    names = ("en", "en-pubmed", "en-wiki")
    return mean(record.sets[name].kl_nats_per_token or 0 for record in records for name in names)


def test_how_much_the_real_model_learns_is_in_the_records() -> None:
    ours, calibrated, tuned, low_rank = (
        {it.config["seed"]: it.sets["fr"].rise_percent for it in real_models("fr", run)}
        for run in ("neutral/", "neutral_calibrated/", "finetune/lr0.00033", "lora/b0.2-lr0.002")
    )

    def shares(drops: dict[int, float]) -> list[str]:
        """Of fine-tuning's and LoRA's drop, with the same seeds."""
        own = mean(drops.values())
        return [f"{100 * own / mean(it[s] for s in drops):.0f} %" for it in (tuned, low_rank)]

    text = " ".join(README.split())
    for drops, said in (
        (ours, "learn {} of what fine-tuning does here, and {} of LoRA"),
        (calibrated, "on other English text, with one seed, {} and {}, and then"),
    ):
        assert said.format(*shares(drops)) in text


def test_on_how_much_english_a_calibrated_real_model_has_open_gates() -> None:
    (record,) = real_models("fr", "neutral_calibrated/")
    source = [record.sets[name] for name in ("en", "en-pubmed", "en-wiki")]
    tokens = sum(it.num_tokens for it in source)
    touched = tokens - sum(it.num_neutral_tokens or 0 for it in source)
    said = f"gates are exactly 0 on all but {touched} of these {tokens:,} English tokens"
    assert said in " ".join(README.split())


def test_what_is_said_of_beginnings_is_in_the_records() -> None:
    names = ("en", "en-pubmed", "en-wiki")
    for label, said in (("neutral/", "a KL of {}, calibrated"), ("neutral_cal", "calibrated {} (")):
        found = [record.beginnings for record in real_models("fr", label)]
        kl = mean(it[name].kl_nats_per_token or 0 for it in found for name in names)
        assert said.format(f"{kl:.3f}") in " ".join(README.split())


def test_what_is_said_of_tasks_on_the_real_model_is_in_the_records() -> None:
    changes = {}
    for language in ("fr", "de"):
        (record,) = real_models(language, "neutral/b0.2-lr0.00167-p0.1-s0")
        english = [score for score in record.main_scores if score.name.endswith("_en")]
        assert len(english) == 10
        assert all(score.low <= 0 <= score.high for score in english)
        changes[language] = 100 * mean(score.difference for score in english)
    said = "on average {fr:+.1f} points after French and {de:+.1f} after German"
    assert said.format(**changes) in " ".join(README.split())


def test_what_is_said_of_german_on_the_real_model_is_in_the_records() -> None:
    text = " ".join(README.split())
    said = {
        "finetune/": "to {bits:.3f} by fine-tuning, with KL or without,",
        "finetune-kl/": "to {bits:.3f} by fine-tuning, with KL or without,",
        "lora/b0.2-lr0.002": "to {bits:.3f} by LoRA and",
        "adapter/b0.2-lr0.0066": (
            "{bits:.3f} by the gate-less adapter, which all keep {same} of {all} answers"
        ),
        "neutral/": "to {bits:.3f} by neutral residues, which keep {same};",
        "neutral_calibrated/": "calibrated to {bits:.3f} with {same} of {all}.",
    }
    for run, sentence in said.items():
        (record,) = real_models("de", run)
        german = record.sets["de"]
        assert f"**German** ({german.backbone_bits_per_byte:.3f}; one seed) is learnt" in text
        same = sum(sample.is_same for sample in record.chat)
        bits = german.extended_bits_per_byte
        assert sentence.format(bits=bits, same=same, all=len(record.chat)) in text


def test_what_is_said_of_new_tokens_is_in_the_records() -> None:
    found = {
        "neutral-4000/b0.2-lr0.005": [],
        "finetune-4000/lr0.0015": [],
        "lora-4000/b0.2-lr0.003": [],
        "neutral/b0.2-lr0.005": [],
    }
    for run in packed("vocabulary"):
        for name, sets in found.items():
            if f"ukrainian/{name}-" in run.origin:
                sets.append(run.record.sets)
    after, tuned, low_rank, plain = found.values()
    assert (len(after), len(tuned)) == (3, 3)
    text, uk = " ".join(README.split()), [sets["uk"] for sets in after]
    without = mean(sets["uk"].extended_bits_per_byte for sets in plain)
    reached = mean(it.extended_bits_per_byte for it in uk)
    assert f"reaches {reached:.2f} bits per byte instead of {without:.2f}" in text
    fine_tuned = mean(sets["uk"].extended_bits_per_byte for sets in tuned)
    novels = mean(sets["en"].rise_percent for sets in tuned)
    assert f"reaches {fine_tuned:.2f} and forgets {novels:.0f} % of English novels" in text
    of_lora = mean(sets["uk"].extended_bits_per_byte for sets in low_rank)
    its_novels = mean(sets["en"].rise_percent for sets in low_rank)
    assert f"LoRA {of_lora:.2f} and {its_novels:.1f} %;" in text
    rises = (mean(s[name].rise_percent for s in after) for name in ("en", "en-pubmed", "en-wiki"))
    assert f"neutral residues forget at most {max(rises):.2f} %" in text
    share = mean(it.num_tokens / (it.backbone_tokens or 0) for it in uk)
    assert f"takes {10.5 * share:.1f} tokens a word instead of 10.5" in text
