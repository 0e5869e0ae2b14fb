"""The fixed tiny run gives what it gave when `golden.json` was written.

On one machine the numbers are bit-identical; another processor may round differently, so rows are
compared exactly here and the rest closely.
"""

import json
from pathlib import Path

import pytest
import torch

from golden.golden_run import golden_run

GOLDEN = Path(__file__).parent / "golden.json"


def test_the_fixed_run_gives_the_stored_numbers(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = golden_run(tmp_path)
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert found.keys() == expected.keys()
    for exact in ("input_ids", "domain_labels", "corpus_id"):
        assert found[exact] == expected[exact], exact
    assert len(found["curve"]) == len(expected["curve"])
    for point, stored in zip(found["curve"], expected["curve"], strict=True):
        assert point == pytest.approx(stored, rel=1e-4, abs=1e-6)
    for set_, bits in expected["bits_per_byte"].items():
        assert found["bits_per_byte"][set_] == pytest.approx(bits, rel=1e-5)
        assert found["gates_zero"][set_] == pytest.approx(expected["gates_zero"][set_], abs=0.01)
    assert found["last_logits"] == pytest.approx(expected["last_logits"], rel=1e-3, abs=1e-5)
