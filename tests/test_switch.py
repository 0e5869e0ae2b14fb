"""recipes/switch.py: a switch that is right is the backbone on source and extended on target."""

from pathlib import Path
from types import ModuleType

import pytest

from neutral_residues import extend
from neutral_residues.config.data import Role
from neutral_residues.config.run import make_run
from neutral_residues.evaluation.saved import load_saved
from paths import ROOT, load_script
from tiny_run import method_values


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return load_script(ROOT / "recipes" / "switch.py")


def by_words(text: str) -> Role:
    return "source" if {"the", "and", "cat"} & set(text.split()) else "target"


def test_a_switch(recipe: ModuleType, tmp_path: Path) -> None:
    record = extend(make_run(method_values(tmp_path, "adapter", steps=4, learning_rate=0.02)))
    saved = load_saved(tmp_path / "adapter")
    right = {row.name: row for row in recipe.measure(saved, by_words)}
    assert set(right) == {*record.sets, "en and fr mixed"}
    assert (right["en"].wrong, right["fr"].wrong) == (0, 0)
    assert right["en"].switch == right["en"].backbone != right["en"].extended
    assert right["fr"].switch == right["fr"].extended < right["fr"].backbone
    mixed = right["en and fr mixed"]
    assert mixed.wrong is None
    assert mixed.best <= min(mixed.backbone, mixed.extended)
    always_on = {row.name: row for row in recipe.measure(saved, lambda _: "target")}
    assert always_on["en"].wrong == 1
    assert always_on["en"].switch == always_on["en"].extended == right["en"].extended


def test_texts_take_turns_while_both_last(recipe: ModuleType) -> None:
    mixed = recipe.take_turns("one " * 120, "deux " * 60).split()
    assert mixed[0] == "one"
    assert [mixed.count("one"), mixed.count("deux")] == [100, 60]
