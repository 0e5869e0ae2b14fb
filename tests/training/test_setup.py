"""A checked run: its rows, its weights, and what is refused before anything is read."""

from pathlib import Path

import pytest

from neutral_residues.config.run import make_run
from neutral_residues.data.labels import TARGET
from neutral_residues.errors import UserError
from neutral_residues.evaluation.evaluate import evaluation_set
from neutral_residues.training.cost import WeightCount
from neutral_residues.training.models import backbone_of
from neutral_residues.training.setup import Setup
from neutral_residues.tuner.blocks import count_backbone_weights
from tiny_run import run_values


def test_seeds_compare_on_the_same_text(tmp_path: Path) -> None:
    runs = [Setup.of(make_run(run_values(tmp_path) | {"seed": seed})) for seed in (0, 1)]
    one, other = ([evaluation_set(stream) for stream in run.data.evaluate] for run in runs)
    assert one == other
    orders = [[row["input_ids"].tolist() for row in run.rows] for run in runs]
    assert orders[0] != orders[1]


def test_what_a_method_trains_does_not_change_its_rows(tmp_path: Path) -> None:
    """Every method of a comparison reads the same rows in the same order, spliced ones too; noise
    replaces tokens of source rows only."""
    values = run_values(tmp_path)
    values["data"]["spliced_share"] = 0.5
    rows = [
        Setup.of(make_run(values | {"method": method})).rows for method in ("neutral", "finetune")
    ]
    assert any(row["domain_labels"].unique().numel() > 1 for row in rows[1])
    assert any(not row["predicted"].all() for row in rows[0])
    for one, other in zip(*rows, strict=True):
        assert one["corpus_ids"].equal(other["corpus_ids"])
        assert not one["predicted"].any() or one["input_ids"].equal(other["input_ids"])


def test_rows_are_shared_out_as_the_run_file_says(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    french = values["data"]["train"][0]
    other = french | {"name": "again", "share": [0.0, 1.0]}
    french["share"] = [1.0, 0.0]
    values["data"]["train"].append(other)
    rows = Setup.of(make_run(values)).rows
    corpora = [int(row["corpus_ids"][0]) for row in rows if row["domain_labels"][0] == TARGET]
    assert len(corpora) == 48
    assert abs(corpora.count(0) - 24) < 1
    assert corpora[:8].count(2) <= 1 < 7 <= corpora[-8:].count(2)


@pytest.mark.parametrize("method", ["neutral", "finetune"])
def test_weights_are_counted_without_loading_them(tmp_path: Path, method: str) -> None:
    setup = Setup.of(make_run(run_values(tmp_path) | {"method": method}))
    backbone = backbone_of(setup, frozen=True)
    weights = WeightCount(count_backbone_weights(backbone))
    assert setup.weights == weights.with_model(setup.method.attach(backbone, setup.config))


def test_a_budget_that_cannot_be_met_is_refused_before_the_texts_are_read(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    (tmp_path / "fr.jsonl").unlink()
    with pytest.raises(UserError, match="budget"):
        Setup.of(make_run(values | {"budget": 1e-6}))
