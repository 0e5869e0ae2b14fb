"""The demo with a few steps: what ships is whole and free, both runs go through, picture and next
run are there."""

import gzip
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors import safe_open

from neutral_residues.config.run import load_run
from neutral_residues.demo.run import DEMO_DATA, run_demo

MAX_WEIGHT_BYTES = 8 * 1024 * 1024


@pytest.mark.slow
def test_the_demo_from_end_to_end(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    records = run_demo(tmp_path, console=console, steps=5, test_documents=2)
    assert set(records) == {"neutral residues", "plain fine-tuning"}
    for record in records.values():
        assert record.sets["French"].rise_percent < 0
    neutral, finetuned = (record.sets["English"] for record in records.values())
    assert neutral.backbone_nats == pytest.approx(finetuned.backbone_nats, rel=1e-9)
    # Even after five steps fine-tuning has begun to forget, and more than neutral residues.
    assert finetuned.extended_nats > neutral.extended_nats

    text = printed.getvalue()
    for part in (
        "bits per byte",
        "Il y avait",
        "trade-off.png",
        "neutral extend",
        "plain fine-tuning",
    ):
        assert part in text or part.capitalize() in text, part
    assert (tmp_path / "trade-off.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    assert "finetune" in page
    assert "Gates over text" in page
    following = load_run(tmp_path / "next.yaml")
    assert following.model == "HuggingFaceTB/SmolLM2-135M"
    assert {corpus.role for corpus in following.data.train} == {"source", "target"}

    again = io.StringIO()
    run_demo(tmp_path, console=Console(file=again, width=300), steps=5, test_documents=2)
    assert "is finished" in again.getvalue()


def test_what_ships_is_small_and_says_where_it_comes_from() -> None:
    weights = DEMO_DATA / "backbone" / "model.safetensors"
    assert weights.stat().st_size <= MAX_WEIGHT_BYTES
    with safe_open(weights, "pt") as file:
        assert sum(file.get_tensor(key).numel() for key in file.keys()) == 3_049_920  # noqa: SIM118 - no mapping
    licences = (DEMO_DATA / "LICENSE.md").read_text(encoding="utf-8")
    assert "public domain" in licences
    assert "CC0" in licences
    for path in DEMO_DATA.glob("*.jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            sources = {json.loads(line)["source"] for line in lines}
        # Novels by their ELTeC number, Common Voice, Darwin: nothing with another licence.
        assert all(
            s.startswith(("ENG", "FRA")) or s in ("common-voice", "darwin-origin") for s in sources
        ), path.name
