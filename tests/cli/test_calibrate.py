"""`neutral calibrate`: a promise that is written wherever the extension is, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from command_line import Neutral, assert_one_line
from neutral_residues import extend
from neutral_residues.cli.calibrate import costly
from neutral_residues.config.run import make_run
from neutral_residues.evaluation.saved import load_saved
from neutral_residues.evaluation.tasks.cache import weights_key
from neutral_residues.results.calibration import read_calibration
from neutral_residues.results.promise import TargetCost
from neutral_residues.results.record import Sample
from neutral_residues.results.store import read_record, write_record
from neutral_residues.tuner.gates import extension_digest, gates
from tiny_run import SOURCE_WORDS, TARGET_WORDS, make_text, method_values

SAMPLE = {"prompt": "a cat", "backbone": "no", "extended": "yes"}
LOOSE = ("--at-most", "30%", "--confidence", "0.8")


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Source text that was not trained on."""
    return f"source:new={make_text(tmp_path / 'new.jsonl', SOURCE_WORDS, documents=30, seed=9)}"


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "extension" / "adapter_config.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the configuration, which is formatted anew, and the digests."""
    changed = ("adapter_config.json", "SHA256SUMS")
    files = (path for path in folder.iterdir() if path.name not in changed)
    return {path.name: path.read_bytes() for path in files}


def test_a_promise_and_its_end(finished: Path, text: str, neutral: Neutral) -> None:
    before, plain = contents(finished / "extension"), config_of(finished)
    key = weights_key(finished / "extension", "backbone")
    code, printed = neutral("calibrate", finished, "--on", text, *LOOSE)
    assert code == 0, printed
    words = " ".join(printed.split())
    assert "For text like new (20 documents), the gates open on at most 30 % of the tokens" in words
    assert "with 80 % confidence; nothing is promised for other text." in words
    assert "extension skipped" in words
    assert "share of learning lost" in words, "the run's own target text"

    saved = load_saved(finished)
    assert all(gate.threshold is not None for gate in gates(saved.model).values())
    calibration = read_calibration(finished / "extension", weights=extension_digest(saved.model))
    sentence = calibration.promise.sentence
    assert config_of(finished)["thresholds"]["promise"] == sentence
    assert sentence in (finished / "extension" / "README.md").read_text()
    assert read_record(finished / "record.json").promise == calibration.promise
    assert weights_key(finished / "extension", "backbone") != key, "tasks are measured again"
    (result,) = calibration.promise.sets
    assert (result.num_units, result.num_tuning_units) == (20, 10)
    assert calibration.promise.training_text_checked

    measured = finished / "measured.json"
    code, printed = neutral("evaluate", finished, "--output", measured)
    assert code == 0, printed
    assert read_record(measured).promise == calibration.promise
    code, printed = neutral("calibrate", finished, "--on", text, *LOOSE, "--over", 1)
    assert code == 0, printed
    assert (finished / "extension" / "README.md").read_text().count("## Calibrated") == 1
    code, printed = neutral("calibrate", finished, "--remove")
    assert code == 0, printed
    assert contents(finished / "extension") == before
    assert config_of(finished) == plain
    assert read_record(finished / "record.json").promise is None
    assert_one_line(neutral("calibrate", finished, "--remove"), "is not calibrated")


def test_the_record_of_the_run_is_measured_anew(
    finished: Path, text: str, tmp_path: Path, neutral: Neutral
) -> None:
    path, run, sample = finished / "record.json", finished / "run.yaml", Sample(**SAMPLE)
    settings = run.read_text().replace("kl: false", "kl: true")
    run.write_text(settings.replace("prompts: []", "prompts: [a]"))
    trained = read_record(path).model_copy(update={"samples": [sample]})
    write_record(path, trained)
    assert trained.is_current
    renew = ("evaluate", finished, "--into-record")
    assert_one_line(neutral(*renew), "nothing to add", "add --tasks or --chat")
    code, printed = neutral("calibrate", finished, "--on", text, *LOOSE, "--over", 1)
    assert code == 0, printed
    assert f"anew: neutral evaluate {finished} --into-record" in printed
    record = read_record(path)
    assert not record.is_current
    assert record.sets == trained.sets

    def page() -> str:
        assert neutral("report", finished)[0] == 0
        return (finished / "report" / "summary.md").read_text()

    assert "as trained, before it was calibrated" in page()
    # What the record holds is measured anew as a whole, or not at all.
    write_record(path, record.model_copy(update={"chat": [sample]}))
    assert_one_line(neutral(*renew), "thresholds have changed", "nothing for --chat FILE")
    assert_one_line(neutral(*renew, "--context", 16), "--context does not go with --into-record")
    write_record(path, record.model_copy(update={"beginnings": {}}))
    # Beside each other they are two rows of one run.
    apart, both = tmp_path / "calibrated.json", tmp_path / "both"
    assert neutral("evaluate", finished, "--output", apart)[0] == 0
    assert neutral("report", finished, apart, "--output", both)[0] == 0
    rows = (both / "summary.md").read_text().splitlines()
    assert [row.split("|")[1].strip() for row in rows if row.startswith("| neutral")][:2] == [
        "neutral",
        "neutral, calibrated",
    ]
    code, printed = neutral(*renew)
    assert code == 0, printed
    assert "those of the extension as it is now" in printed
    renewed = read_record(path)
    assert renewed.is_current
    assert renewed.promise == record.promise
    (cost,) = record.promise.costs if record.promise else ()
    assert renewed.sets["fr"].extended_bits_per_byte == pytest.approx(cost.calibrated)
    assert renewed.sets["en"].kl_nats_per_token is not None, "as the run measured"
    assert (renewed.curve, renewed.cost) == (trained.curve, trained.cost)
    assert [it.prompt for it in renewed.samples] == ["a"]
    assert renewed.samples != [sample]
    assert renewed.gates
    assert renewed.beginnings.keys() == renewed.sets.keys()
    assert "with these thresholds" in page()
    assert f"{cost.calibrated:.3f}" in (finished / "extension" / "README.md").read_text()
    code, printed = neutral("calibrate", finished, "--remove")
    assert "anew: neutral evaluate" in printed
    assert "with these thresholds, removed since" in page()
    assert neutral(*renew)[0] == 0
    again = read_record(path)
    assert again.is_current
    assert again.promise is None
    assert again.sets["fr"].extended_bits_per_byte == pytest.approx(
        trained.sets["fr"].extended_bits_per_byte
    )


def test_thresholds_that_lose_what_was_learnt_are_warned_of() -> None:
    half, little = (
        TargetCost(name="fr", backbone=4.0, trained=2.0, calibrated=bits) for bits in (3.0, 2.04)
    )
    (line,) = costly([half, little])
    assert "on fr 50 % of what was learnt is lost; a larger --over" in line


def test_an_extension_without_its_run(
    finished: Path, text: str, tmp_path: Path, neutral: Neutral
) -> None:
    alone = Path(shutil.copytree(finished / "extension", tmp_path / "alone"))
    code, printed = neutral("calibrate", alone, "--on", text, *LOOSE, "--confidence", "average")
    assert code == 0, printed
    words = " ".join(printed.split())
    assert "warning: this is an extension without its run" in words
    assert "if it was not trained on" in words
    assert "the cost is unknown without target text" in words
    weights = alone / "adapter_model.safetensors"
    (alone / "SHA256SUMS").unlink()
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # trained further
    weights.write_bytes(data)
    assert_one_line(neutral("evaluate", alone, "--set", text), "other weights", "calibrate")


def test_bad_text(
    finished: Path, trained: Path, text: str, tmp_path: Path, neutral: Neutral
) -> None:
    french = f"target:fr={make_text(tmp_path / 'fr.jsonl', TARGET_WORDS, seed=5)}"
    known = f"source:en={trained / 'en.jsonl'}"
    for options, parts in {
        (): ["nothing to calibrate on", "--on source:NAME=FILE"],
        ("--on", french): ["fr is target text"],
        ("--on", known, *LOOSE): ["en is text that the extension was trained on", "of its 40"],
        ("--on", text): ["too few units", "got 30 documents", "332 or more"],
        ("--on", text, "--group-by", "book", *LOOSE): ["no field 'book'"],
        ("--on", text, "--at-most", "much"): ["--at-most", "a share, as 1% or 0.01"],
        ("--on", text, "--at-most", "0"): ["at_most", "above 0"],
        ("--on", text, "--confidence", "100%"): ["confidence", "below 1"],
        ("--on", text, "--promise", "peace"): ["--promise", "tokens, documents"],
        ("--on", text, "--form", "soft"): ["--form", "cut, shift"],
        ("--on", text, "--rise", "2"): ["--rise goes with --promise documents"],
        ("--on", text, "--over", "0"): ["over", "1 or more"],
        ("--on", text, "--cost-on", text): ["--cost-on new", "target:NAME=FILE"],
        ("--on", "new.jsonl"): ["--on", "role:name=file"],
    }.items():
        assert_one_line(neutral("calibrate", finished, *options), *parts)
    assert config_of(finished)["thresholds"] is None


@pytest.mark.slow
def test_extensions_without_gates(text: str, tmp_path: Path, neutral: Neutral) -> None:
    torch.set_num_threads(1)
    said = {"lora": "has no gates", "finetune": "only an extension with gates"}
    for method, part in said.items():
        extend(make_run(method_values(tmp_path, method, steps=2)))
        assert_one_line(neutral("calibrate", tmp_path / method, "--on", text, *LOOSE), part)


def test_a_monitor(finished: Path, text: str, tmp_path: Path, neutral: Neutral) -> None:
    french = make_text(tmp_path / "fr.jsonl", TARGET_WORDS, documents=12, seed=5)
    assert_one_line(neutral("monitor", finished, french), "no thresholds", "neutral calibrate")
    code, printed = neutral("calibrate", finished, "--on", text, *LOOSE)
    assert code == 0, printed
    lines = tmp_path / "gates.jsonl"
    code, printed = neutral("monitor", finished, french, "--output", lines)
    assert code == 0, printed
    words = " ".join(printed.split())
    assert "nothing is promised for other text." in words
    assert "12 documents" in words
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [text["document"] for text in found] == list(range(12))
    assert all(0 <= text["open_share"] <= 1 and 0 < text["p_value"] <= 1 for text in found)
    assert_one_line(neutral("monitor", finished, tmp_path / "none.jsonl"), "no such file")
    (finished / "extension" / "calibration.json").write_text("{")
    assert_one_line(neutral("monitor", finished, french), "calibration.json is not as it was saved")
    (finished / "extension" / "SHA256SUMS").unlink()
    (finished / "extension" / "calibration.json").unlink()
    assert_one_line(neutral("monitor", finished, french), "is not calibrated")
