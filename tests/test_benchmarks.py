"""The arithmetic that the scripts in `benchmarks/` hold their measurements against."""

import runpy

import pytest

from paths import ROOT

Bound = runpy.run_path(str(ROOT / "benchmarks" / "models.py"))["Bound"]


def test_bounds_by_hand() -> None:
    # A step: (4 * 100 + 6 * 20) / (6 * 100), and 2 * 30 less where no gradient flows.
    assert Bound(backbone=100, new=20).train_frozen == pytest.approx(5.2 / 6)
    assert Bound(backbone=100, new=20, below=30).train_frozen == pytest.approx(4.6 / 6)
    assert Bound(backbone=100, new=20).run_open == pytest.approx(1.2)
