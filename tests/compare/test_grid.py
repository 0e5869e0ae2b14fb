"""Comparison files and their cells: what is crossed, what is named how, what waits for what, what
is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from neutral_residues.compare.grid import best_factors, expand
from neutral_residues.config.base import checked
from neutral_residues.config.comparison import CompareConfig, load_comparison
from neutral_residues.errors import UserError
from neutral_residues.results.record import Record
from neutral_residues.results.set_result import EvaluationSet
from neutral_residues.results.store import provenance
from tiny_run import run_values, write_run


def comparison(folder: Path, **settings: Any) -> CompareConfig:
    run = write_run(folder, run_values(folder), "tiny.yaml")
    values = {
        "runs": [str(run)],
        "output": str(folder / "out"),
        "methods": ["neutral", "finetune"],
    } | settings
    return checked(CompareConfig, values)


def names(cells: Any) -> list[str]:
    return [cell.name for cell in cells]


def test_every_combination_is_a_cell_named_by_what_it_is(tmp_path: Path) -> None:
    config = comparison(tmp_path, budgets=[0.1, 0.2], source_shares=[0.25, 0.5], seeds=[0, 7])
    cells = expand(config)
    # Fine-tuning has no use for a budget, so it is there once for each share and seed.
    assert len(cells.trained) == 2 * 2 * 2 + 2 * 2
    assert cells.trained[0].name == "tiny/neutral/b0.1-lr0.03-p0.25-s0"
    assert cells.trained[-1].name == "tiny/finetune/lr0.006-p0.5-s7"
    for cell in cells.trained:
        assert cell.config.output == tmp_path / "out" / "cells" / cell.name
    last = cells.trained[-1].config
    assert (last.seed, last.data.source_share, last.training.learning_rate) == (7, 0.5, 0.006)
    assert cells.first_wave() == list(cells.trained)


def test_an_entry_has_settings_of_its_own(tmp_path: Path) -> None:
    entry = {
        "method": "neutral",
        "label": "mine",
        "set": {"budget": 0.5, "residues": {"init": "paper"}},
    }
    cells = expand(
        comparison(tmp_path, methods=[entry], budgets=[0.1, 0.2], set={"training.steps": 3})
    )
    (cell,) = cells.trained
    assert cell.name == "tiny/mine/b0.5-lr0.03-p0.25-s0"
    config = cell.config
    assert (config.label, config.budget, config.residues.init, config.training.steps) == (
        "mine",
        0.5,
        "paper",
        3,
    )
    assert config.training.batch_rows == 4  # the rest is the run file's


def test_what_an_entry_sets_itself_is_not_crossed(tmp_path: Path) -> None:
    entries = [
        {"method": "neutral", "set": {"data": {"source_share": 0.5}}},
        {"method": "wise-ft", "set": {"scaling.share": 0.3}},
        "finetune",
    ]
    cells = expand(comparison(tmp_path, methods=entries, source_shares=[0.1, 0.25]))
    assert names(cells.trained) == [
        "tiny/neutral/b0.2-lr0.03-p0.5-s0",
        "tiny/finetune/lr0.006-p0.1-s0",
        "tiny/finetune/lr0.006-p0.25-s0",
    ]
    assert names(cells.derived) == [f"tiny/wise-ft/share0.3-lr0.006-p{p}-s0" for p in (0.1, 0.25)]


def test_what_is_scaled_has_the_budget_of_the_run_behind_it(tmp_path: Path) -> None:
    entries = ["adapter", {"method": "adapter-scaled", "set": {"scaling.share": 0.4}}]
    cells = expand(comparison(tmp_path, methods=entries, budgets=[0.1, 0.2]))
    behind = {cell.name: cell.config.scaling.trained for cell in cells.derived}
    trained = {budget: f"tiny/adapter/b{budget}-lr0.06-p0.25-s0" for budget in (0.1, 0.2)}
    assert names(cells.trained) == list(trained.values())
    assert behind == {
        f"tiny/adapter-scaled/b{budget}-share0.4-lr0.06-p0.25-s0": tmp_path / "out/cells" / name
        for budget, name in trained.items()
    }


def test_a_section_of_the_run_file_counts_for_the_methods_that_use_it(tmp_path: Path) -> None:
    run = write_run(
        tmp_path, run_values(tmp_path) | {"residues": {"local_loss_weight": 2.0}}, "tiny.yaml"
    )
    values = {"runs": [str(run)], "output": "out", "methods": ["neutral", "finetune"]}
    neutral, finetune = expand(checked(CompareConfig, values)).trained
    assert neutral.config.residues.local_loss_weight == 2.0
    assert finetune.config.residues.local_loss_weight == 0.06


def test_tuning_tries_all_rates_with_one_seed_and_averages_the_best(tmp_path: Path) -> None:
    run = run_values(tmp_path)
    run["data"]["validate_on"] = [
        {"name": "v", "role": "target", "path": str(tmp_path / "v.jsonl")}
    ]
    path = write_run(tmp_path, run, "tiny.yaml")
    settings = {"learning_rate_factors": [1, 2], "seeds": [4, 5, 6], "tune": True}
    methods = ["finetune", {"method": "wise-ft", "set": {"scaling.share": 0.3}}]
    config = checked(
        CompareConfig, {"runs": [str(path)], "output": "out", "methods": methods} | settings
    )
    cells = expand(config)
    assert names(cells.first_wave()) == [
        "tiny/finetune/lr0.006-p0.25-s4",
        "tiny/finetune/lr0.012-p0.25-s4",
    ]
    records = {
        cell.name: _record(bits) for cell, bits in zip(cells.first_wave(), (2.0, 1.5), strict=True)
    }
    best = best_factors(records, cells.first_wave())
    assert best == {"tiny/finetune/p0.25": 2}
    assert names(cells.second_wave(best)) == [
        f"tiny/finetune/lr0.012-p0.25-s{seed}" for seed in (5, 6)
    ]
    third = cells.third_wave(best)
    assert names(third) == [f"tiny/wise-ft/share0.3-lr0.012-p0.25-s{seed}" for seed in (4, 5, 6)]
    assert third[0].config.scaling.trained == Path("out/cells/tiny/finetune/lr0.012-p0.25-s4")
    assert cells.at_most() == 2 + 2 + 3
    assert cells.second_wave({}) == []  # all of the group failed


def _record(bits: float) -> Record:
    """Validation text ends at `bits`; other sets and earlier points must not count."""
    text = EvaluationSet(role="target", key="k", num_bytes=1, num_tokens=1, num_documents=1)
    curve = [
        {"step": 0, "bits_per_byte/v": 0.1},
        {"step": 5, "bits_per_byte/v": bits, "bits_per_byte/fr": 9.0},
        {"step": 5, "loss": 0.2},
    ]
    return Record(
        kind="extend",
        method="finetune",
        validation_sets={"v": text},
        curve=curve,
        provenance=provenance(),
    )


def test_a_method_of_ones_own_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "our_rows.py").write_text(
        "import dataclasses\n"
        "from neutral_residues.methods.table import find_method\n"
        "SLOW = dataclasses.replace(find_method('finetune'), name='slow', learning_rate=1e-5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (cell,) = expand(comparison(tmp_path, methods=["our_rows:SLOW"])).trained
    assert (cell.name, cell.config.method) == ("tiny/slow/lr6e-05-p0.25-s0", "our_rows:SLOW")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"methods": ["neutrla"]}, "unknown method neutrla; did you mean 'neutral'"),
        ({"methods": ["neutral", "neutral"]}, "label of methods: neutral is given twice"),
        ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"seeds": []}, "seeds"),
        ({"learning_rate_factors": [0]}, "above 0"),
        ({"method": ["neutral"]}, "unknown key method; did you mean 'methods'"),
        (
            {"methods": [{"method": "lora", "set": {"residues.init": "paper"}}]},
            "no effect on method lora",
        ),
        ({"set": {"training.stpes": 3}}, "unknown key training.stpes; did you mean 'steps'"),
        ({"methods": ["wise-ft"]}, "wise-ft scales runs of finetune.*add finetune"),
        (
            {"methods": [{"method": "finetune", "set": {"training.learning_rate": 1}}, "wise-ft"]},
            "none here fits; add finetune to methods, with the same settings",
        ),
        (
            {"methods": [{"method": "finetune", "set": {"training.steps": 9}}, "wise-ft"]},
            "wise-ft: .*out/cells/.* is trained with training.steps 9; got 8; give the same",
        ),
        ({"tune": True}, "tune has nothing to choose from"),
        ({"tune": True, "learning_rate_factors": [1, 2]}, "tune chooses by data.validate_on"),
        ({"runs": ["none.yaml"]}, "no such file: none.yaml"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        expand(comparison(tmp_path, **settings))


def test_overrides_reach_the_comparison_and_its_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path, run_values(tmp_path), "tiny.yaml")
    file = tmp_path / "compare.yaml"
    values = {
        "runs": [str(run)],
        "output": "out",
        "methods": ["neutral"],
        "set": {"training.steps": 3},
    }
    file.write_text(yaml.safe_dump(values))
    config = load_comparison(file, ("seeds=[3]", "set.training.steps=5", "set.budget=0.5"))
    (cell,) = expand(config).trained
    assert (cell.config.seed, cell.config.training.steps, cell.config.budget) == (3, 5, 0.5)
