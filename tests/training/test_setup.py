"""What a run needs before its first step."""

from pathlib import Path

from neutral_residues.backbone import load_tokenizer
from neutral_residues.config.run import make_run
from neutral_residues.training.setup import make_rows, prepare_data
from tiny_run import run_values


def test_seeds_compare_on_the_same_text(tmp_path: Path) -> None:
    runs = [make_run(run_values(tmp_path) | {"seed": seed}) for seed in (0, 1)]
    tokenizer = load_tokenizer(runs[0].model)
    data = [prepare_data(run, tokenizer, show_progress=False) for run in runs]
    assert data[0].sets() == data[1].sets()
    assert {s.use for s in data[0].sets()} == {"evaluate"}
    orders = [
        [row["input_ids"].tolist() for row in make_rows(r, d, tokenizer)]
        for r, d in zip(runs, data, strict=True)
    ]
    assert orders[0] != orders[1]


def test_what_a_method_trains_does_not_change_its_rows(tmp_path: Path) -> None:
    """Every method of a comparison sees the same rows in the same order; noise replaces tokens in
    source rows only."""
    runs = [
        make_run(run_values(tmp_path) | {"method": method}) for method in ("neutral", "finetune")
    ]
    tokenizer = load_tokenizer(runs[0].model)
    rows = [
        make_rows(run, prepare_data(run, tokenizer, show_progress=False), tokenizer) for run in runs
    ]
    noised = [row["noised"] for row in rows[0]]
    assert any(noised)
    for one, other in zip(*rows, strict=True):
        assert one["corpus_id"] == other["corpus_id"]
        assert one["noised"] or one["input_ids"].equal(other["input_ids"])
